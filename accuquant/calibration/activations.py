"""Watch a float network on its trajectories, and turn what its layers see into qparams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from accuquant.e4m3 import Format
from accuquant.errors import CalibrationError
from accuquant.networks.network import float_weight, layer_kind, quantizable_layers, watching_inputs
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.scales.fp8_observer import fp8_observer_named, fp8_weight_scale
from accuquant.scales.observer import choose_zero_point, observer_named, weight_scale

#: Values kept for each layer and step group: enough for a stable MSE search, small for 200 layers.
SAMPLES = 32768
#: One array [N] of values for each step group.
LayerSamples = list[npt.NDArray[np.float32]]
Samples = Mapping[str, LayerSamples]


class ActivationSampler:
    """Collects a random sample, and the extremes, of every layer's input in every step group."""

    def __init__(self, names: Sequence[str], calls: Sequence[int], seed: int) -> None:
        """Prepare for `calls[g]` calls of the network in step group g, those of other batches included."""
        self._rng = torch.Generator().manual_seed(seed)
        self._per_call = [_drawn(count) for count in calls]
        self._kept: dict[str, list[list[Tensor]]] = {n: [[] for _ in calls] for n in names}
        self._last: tuple[Tensor, Tensor] | None = None
        self.group = 0
        self.place = "a call"

    def observe(self, name: str, x: Tensor) -> None:
        """Keep some values of a layer's input `x` [any shape].

        Raises CalibrationError, which names `place`, for an input that is not finite.
        """
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._draw(x.detach().reshape(-1)))
            if not bool(torch.isfinite(self._last[1][:2]).all()):  # the extremes: NaN is both
                raise _diverged(name, self.place)
        # layers that read one tensor (to_q, to_k, to_v) get one sample, so that they share a QDQ pair
        self._kept[name][self.group].append(self._last[1])

    def _draw(self, flat: Tensor) -> Tensor:
        count = min(self._per_call[self.group], flat.numel())
        picks = torch.randint(flat.numel(), (count,), generator=self._rng).to(flat.device)
        return torch.cat([torch.stack(flat.aminmax()), flat[picks]]).cpu()

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        """Observe the layers' inputs in every call of `network` inside the block."""
        layers = quantizable_layers(network)
        try:
            with watching_inputs({name: layers[name] for name in self._kept}, self.observe):
                yield
        finally:
            self._last = None

    def samples(self) -> dict[str, LayerSamples]:
        """Return for each layer one array [N] for each step group: random values and extremes, shuffled."""
        shared: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}

        def once(calls: Sequence[Tensor]) -> npt.NDArray[np.float32]:
            """Merge what several layers share (to_q, to_k, to_v) a single time."""
            key = tuple(map(id, calls))
            if key not in shared:
                shared[key] = merged(calls)
            return shared[key]

        return {n: [once(calls) for calls in groups] for n, groups in self._kept.items()}

    def drawn(self) -> dict[str, Tensor]:
        """Return what was kept in each step group that was run, by names "sample/<layer>/<group>"."""
        return {
            f"sample/{name}/{group}": torch.cat(calls)
            for name, groups in self._kept.items()
            for group, calls in enumerate(groups)
            if calls
        }


def sample_bytes(elements: Iterable[int], calls: Sequence[int]) -> int:
    """Return what a sampler keeps of inputs of `elements` numbers each, once `calls[g]` calls are over."""
    return sum(4 * count * (min(_drawn(count), size) + 2) for size in elements for count in calls)


def _drawn(calls: int) -> int:
    return max(64, SAMPLES // max(1, calls))


def _diverged(layer: str, place: str) -> CalibrationError:
    return CalibrationError(
        f"layer '{layer}', {place}",
        got="NaN or infinity among its inputs, in the float network",
        expected="finite values",
        remedy="Sample with the pipeline itself: its images are broken there too. Change scheduler, steps or "
        "size, or repair the checkpoint; nothing was written",
    )


def merged(calls: Sequence[Tensor]) -> npt.NDArray[np.float32]:
    """Join what calls, or batches, kept in one step group, in random order.

    The two extremes of every call are among it, far more often than they occur. That is deliberate:
    clipping the rare large activations costs the image more than their share of the squared error says.
    """
    values = torch.cat(list(calls))
    order = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0))
    return values[order].numpy()


def initial_qparams(
    network: nn.Module,
    samples: Samples,
    *,
    weight_bits: int,
    activation_bits: int,
    observer: str = "mse",
    affine: bool = True,
    format: Format = "int8",
) -> dict[str, LayerQParams]:
    """Return the qparams of every sampled layer: weight scales, zero_points, scales per step group."""
    layers = quantizable_layers(network)
    return {
        name: layer_qparams(
            name, layers[name], groups,
            weight_bits=weight_bits, activation_bits=activation_bits, observer=observer, affine=affine,
            format=format,
        )
        for name, groups in samples.items()
    }  # fmt: skip


def layer_qparams(
    name: str,
    layer: nn.Module,
    samples: LayerSamples,
    *,
    weight_bits: int,
    activation_bits: int,
    observer: str,
    affine: bool,
    format: Format = "int8",
) -> LayerQParams:
    """Return the qparams of one layer, as `initial_qparams` does."""
    kind = layer_kind(layer)
    assert kind is not None
    weight, axis = float_weight(layer), WEIGHT_AXIS[kind]
    zero_point = 0
    if format == "fp8":
        scales = [fp8_observer_named(observer)(values) for values in samples]
        weight_scales = fp8_weight_scale(weight, axis)
    else:
        zero_point = choose_zero_point(samples, activation_bits) if affine else 0
        scales = [observer_named(observer)(values, activation_bits, zero_point) for values in samples]
        weight_scales = weight_scale(weight, weight_bits, axis)
    return LayerQParams(
        name=name,
        kind=kind,
        weight_shape=tuple(weight.shape),
        fingerprint=fingerprint(weight),
        weight_scale=weight_scales,
        activation_scale=np.asarray(scales, np.float32),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        zero_point=zero_point,
        format=format,
    )
