"""Refine activation scales by what they do to each layer's output, on real inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from accuquant._util.progress import Progress, Silent
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of
from accuquant.networks.fake_quantize import quantize_input
from accuquant.networks.frozen_product import FrozenProduct
from accuquant.networks.network import bias_of, quantizable_layers, weight_of
from accuquant.qparams import LayerQParams
from accuquant.units.units import InMemory, Units

from .trajectory import TrajectoryBatch

#: Candidates, as factors on the scale that the observer found. None far below 1: the few batches that are
#: looked at do not hold the rare values that a smaller range would clip (docs/study.md).
FACTORS = np.linspace(0.90, 1.15, 11)
#: A linear layer's scale shrinks no further than this (docs/study.md). A convolution gains by more, where a
#: flat region holds one value over and over, whose rounding error adds up in a window's sum. A linear layer
#: has no window: its rounding errors average out, and what it clips does not.
LEAST_OF_LINEAR = 0.95
#: What is looked at in each step group: this many batches, at this many of the group's steps.
_BATCHES, _STEPS = 2, 2


def refine_scales(
    network: nn.Module,
    process: DenoisingProcess,
    groups: StepGroups,
    qparams: Mapping[str, LayerQParams],
    batches: Sequence[TrajectoryBatch],
    *,
    progress: Progress | None = None,
    units: Units | None = None,
) -> dict[str, LayerQParams]:
    """Return `qparams` with the scale of every step group moved to the best of FACTORS.

    The best factor has the least squared error of the layer's output, float weights, on the float
    network's own inputs. An observer sees values one by one, and takes their rounding errors for independent
    noise. They are not: a flat region holds the same value over and over, its rounding error has one sign
    there, and adds up in the next sum. A linear layer, which has no regions, tries those from LEAST_OF_LINEAR
    on alone. Layers that share one scale get one factor. A unit of work is one batch in one step group.
    """
    shown, members = progress or Silent(), groups.steps_of(process.timesteps)
    pairs = {
        f"{group}.{index}": (group, batch)
        for group in range(len(members))
        for index, batch in enumerate(batches[:_BATCHES])
    }

    def measure(unit: str) -> Tensor:
        group, batch = pairs[unit]
        return _output_errors(network, process, qparams, batch, group, _spread(members[group]))

    calls = iter([len(_spread(members[group])) for group, _ in pairs.values()])
    found = (units or InMemory()).map("refined", list(pairs), measure, lambda: shown.advance(next(calls)))
    errors = torch.stack(found).reshape(len(members), -1, *found[0].shape).sum(1).numpy()
    rows = {name: row for row, name in enumerate(qparams)}
    chosen = {name: layer.activation_scale.copy() for name, layer in qparams.items()}
    for group in range(len(members)):
        for names in _tied(qparams):
            tried = np.logical_and.reduce([tries(qparams[name]) for name in names])
            total = np.sum([errors[group, rows[name]] for name in names], axis=0)
            best = FACTORS[int(np.argmin(np.where(tried, total, np.inf)))]
            for name in names:
                chosen[name][group] = np.float32(chosen[name][group] * best)
    return {name: layer.with_activation_scale(chosen[name]) for name, layer in qparams.items()}


def tries(layer: LayerQParams) -> npt.NDArray[np.bool_]:
    """Return which of FACTORS [F] a layer's scale may take."""
    least = LEAST_OF_LINEAR if layer.kind == "linear" else FACTORS[0]
    found: npt.NDArray[np.bool_] = least - 1e-9 <= FACTORS
    return found


@torch.no_grad()
def _output_errors(
    network: nn.Module,
    process: DenoisingProcess,
    qparams: Mapping[str, LayerQParams],
    batch: TrajectoryBatch,
    group: int,
    steps: Sequence[int],
) -> Tensor:
    """Return each layer's output error with each factor on some steps of one batch [layers, factors]."""
    errors = {name: np.zeros(len(FACTORS)) for name in qparams}
    batch = batch.to(device_of(network))
    with _measured(network, qparams, group, errors):
        for step in steps:
            generators = process.restore_state(batch.state_before(step))
            process.step(batch.bind(network), batch.latents_before(step), step, generators)
    return torch.from_numpy(np.stack(list(errors.values())))


def count_calls(members: Sequence[Sequence[int]], batches: int) -> int:
    """Return how often `refine_scales` calls the network, and reports progress.

    `members` are the steps of each group, as StepGroups.steps_of returns them.
    """
    return min(batches, _BATCHES) * sum(len(_spread(steps)) for steps in members)


def _spread(steps: Sequence[int]) -> list[int]:
    """Return some of a group's steps, away from its ends."""
    return sorted({steps[int(len(steps) * (k + 0.5) / _STEPS)] for k in range(_STEPS)})


def _tied(qparams: Mapping[str, LayerQParams]) -> list[list[str]]:
    """Return the names of the layers that share one set of scales, together."""
    tied: dict[tuple[object, ...], list[str]] = {}
    for name, layer in qparams.items():
        tied.setdefault(layer.activation_key, []).append(name)
    return list(tied.values())


@contextmanager
def _measured(
    network: nn.Module,
    qparams: Mapping[str, LayerQParams],
    group: int,
    errors: Mapping[str, npt.NDArray[np.float64]],
) -> Iterator[None]:
    """Add up each factor's relative squared output error while `network` runs inside the block."""
    layers = quantizable_layers(network)

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor, name: str) -> None:
        # the next layers see the float output: every layer is judged by itself
        power = float(output.square().mean()) or 1.0
        product, weight, bias = FrozenProduct.of(layer), weight_of(layer).to(output.device), bias_of(layer)
        for index, quantized in _candidates(args[0], qparams[name], group):
            # the product itself: a call of the layer would come back to this hook
            difference = product(quantized, lambda weight=weight: weight, bias) - output  # type: ignore[misc]
            errors[name][index] += float(difference.square().mean()) / power

    hooks = [
        layers[name].register_forward_hook(lambda m, args, out, name=name: hook(m, args, out, name))
        for name in qparams
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _candidates(x: Tensor, layer: LayerQParams, group: int) -> Iterator[tuple[int, Tensor]]:
    for index in np.flatnonzero(tries(layer)):
        scale = torch.tensor(np.float32(layer.activation_scale[group] * FACTORS[index])).to(x.device)
        yield int(index), quantize_input(x, scale, layer)
