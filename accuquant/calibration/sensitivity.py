"""Measure what quantizing each layer alone does to one denoising step, and spend a float budget on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from accuquant._util.progress import Progress, Silent
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of
from accuquant.networks.network import quantizable_layers
from accuquant.networks.simulate import ActiveGroup, QuantizedLayer
from accuquant.qparams import LayerQParams
from accuquant.units.units import InMemory, Units

from .learning import sample_errors
from .placement import Placement
from .trajectory import TrajectoryBatch

#: Steps of a trajectory at which each layer is tried.
_STEPS = 4


def measure_sensitivity(
    network: nn.Module,
    process: DenoisingProcess,
    groups: StepGroups,
    qparams: Mapping[str, LayerQParams],
    batch: TrajectoryBatch,
    *,
    num_steps: int = _STEPS,
    progress: Progress | None = None,
    units: Units | None = None,
) -> dict[str, float]:
    """Return, for each layer, the error of x_{t-1} when this layer alone is quantized.

    The error is the median over samples of the mean squared difference to the float step, summed over
    `num_steps` steps spread over the trajectory. `network` is left as it was. A unit of work is a layer.
    """
    shown = progress or Silent()
    steps = _spread(len(process), num_steps)
    active = ActiveGroup(groups)

    def measure(name: str) -> float:
        there = batch.to(device_of(network))  # a worker's network has a device of its own
        with torch.no_grad(), _quantized(network, qparams[name], active):
            return sum(_step_error(network, process, there, step, active) for step in steps)

    found = (units or InMemory()).map("sensitivity", list(qparams), measure, shown.advance)
    return dict(zip(qparams, found, strict=True))


def count_calls(layers: int, steps: int) -> int:
    """Return how often `measure_sensitivity` calls the network, for trajectories of `steps`."""
    return layers * len(_spread(steps, _STEPS))


def _spread(steps: int, count: int) -> list[int]:
    return sorted({round((steps - 1) * (k + 0.5) / count) for k in range(count)})


def spend_float_budget(placement: Placement, errors: Mapping[str, float], budget: float) -> list[str]:
    """Return the layers to leave in float: the most error removed for `budget`, a share of all MACs.

    Greedy by error per multiply-accumulate, skipping what does not fit any more. Raises UsageError where
    the budget buys every layer.
    """
    left = budget * sum(placement.macs.values())
    order = sorted(placement.quantized, key=lambda name: -errors[name] / max(1, placement.macs[name]))
    chosen = []
    for name in order:
        if placement.macs[name] <= left:
            left -= placement.macs[name]
            chosen.append(name)
    if len(chosen) == len(order):
        raise UsageError(
            "--float-budget",
            got=f"{budget:g}, which leaves no layer to quantize",
            expected="a smaller share of the multiply-accumulates",
            remedy="Give --float-budget 0.1, for example",
        )
    return chosen


def _step_error(
    network: nn.Module, process: DenoisingProcess, batch: TrajectoryBatch, step: int, active: ActiveGroup
) -> float:
    active.select(process.timesteps[step])
    generators = process.restore_state(batch.state_before(step))
    after = process.step(batch.bind(network), batch.latents_before(step), step, generators)
    errors = sample_errors(after, batch.latents_before(step + 1))
    # a layer that makes latents NaN is the most sensitive of all, and JSON holds no infinity
    largest = torch.finfo(errors.dtype).max
    return float(errors.nan_to_num(nan=largest, posinf=largest).median())


@contextmanager
def _quantized(network: nn.Module, qparams: LayerQParams, active: ActiveGroup) -> Iterator[None]:
    layer = quantizable_layers(network)[qparams.name]
    network.set_submodule(
        qparams.name, QuantizedLayer(layer, qparams, active, device_of(network)), strict=True
    )
    try:
        yield
    finally:
        network.set_submodule(qparams.name, layer, strict=True)
