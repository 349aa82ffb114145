"""Scales chosen by the layer's output, against a search written out in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.output_search import FACTORS, LEAST_OF_LINEAR, count_calls, refine_scales
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.network import call, quantizable_layers, weight_of
from accuquant.qparams import LayerQParams, fingerprint

Recorded = tuple[nn.Module, list[TrajectoryBatch]]


def qparams_of(
    network: nn.Module, name: str, scales: list[float], zero_point: int = 0, bits: int = 4
) -> LayerQParams:
    weight = weight_of(quantizable_layers(network)[name]).numpy()
    return LayerQParams(
        name=name,
        kind="linear" if weight.ndim == 2 else "conv2d",
        weight_shape=weight.shape,
        fingerprint=fingerprint(weight),
        weight_scale=np.ones(len(weight), np.float32),
        activation_scale=np.asarray(scales, np.float32),
        activation_bits=bits,
        zero_point=zero_point,
    )


@pytest.fixture
def recorded(make_unet: Callable[..., nn.Module], process: DenoisingProcess) -> Recorded:
    network = make_unet()
    return network, record_trajectories(network, process, (1, 8, 8), num_trajectories=2, batch_size=2, seed=0)


def inputs_of(network: nn.Module, name: str, batch: TrajectoryBatch, process: DenoisingProcess) -> np.ndarray:
    """Return what the layer reads at the first and the last step of the first group."""
    seen: list[np.ndarray] = []
    layer = quantizable_layers(network)[name]
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().double().numpy()))
    with torch.no_grad():
        for step in (0, 2):
            call(network, batch.latents[step], process.timesteps[step])
    handle.remove()
    return np.concatenate(seen)


def test_the_factor_has_the_least_output_error_of_all(
    recorded: Recorded, process: DenoisingProcess, groups: StepGroups
) -> None:
    network, batches = recorded
    name = next(n for n, m in quantizable_layers(network).items() if isinstance(m, nn.Linear) and "to_q" in n)
    x = inputs_of(network, name, batches[0], process)
    weight = weight_of(quantizable_layers(network)[name]).double().numpy()
    start = float(np.abs(x).max()) / 7
    layer = qparams_of(network, name, [start] * len(groups))

    def output_error(scale: float) -> float:
        quantized = np.clip(np.rint(x / np.float32(scale)), -8, 7) * np.float32(scale)
        return float(np.square((quantized - x) @ weight.T).sum())

    tried = FACTORS[FACTORS >= LEAST_OF_LINEAR]
    best = tried[int(np.argmin([output_error(start * factor) for factor in tried]))]
    refined = refine_scales(network, process, groups, {name: layer}, batches)[name]
    assert refined.activation_scale[0] == pytest.approx(np.float32(start * best), rel=1e-6)


def errors_of_factors(weight: np.ndarray, x: np.ndarray, start: float) -> list[float]:
    """Return a layer's squared output error with each factor on a scale that clips nothing."""
    found, exact = [], torch.from_numpy(weight).double()
    for factor in FACTORS:
        scale = np.float32(start * factor)
        difference = torch.from_numpy(np.rint(x / scale) * scale - x)
        if weight.ndim == 2:
            output = difference @ exact.T
        else:
            output = nn.functional.conv2d(difference, exact, padding=1)
        found.append(float(output.square().sum()))
    return found


@pytest.mark.parametrize("suffix", ["to_q", "resnets.0.conv1"])
def test_a_linear_scale_stops_at_0_95_and_a_convolutions_at_0_90(
    suffix: str, recorded: Recorded, process: DenoisingProcess, groups: StepGroups
) -> None:
    network, batches = recorded
    name = next(n for n in quantizable_layers(network) if n.endswith(suffix))
    x = inputs_of(network, name, batches[0], process)
    start = 2 * float(np.abs(x).max()) / 127
    errors = errors_of_factors(weight_of(quantizable_layers(network)[name]).numpy(), x, start)
    layer = qparams_of(network, name, [start] * len(groups), bits=8)
    first = 2 if layer.kind == "linear" else 0
    assert FACTORS[[0, 2]] == pytest.approx([0.90, 0.95])
    assert int(np.argmin(errors)) < 2, "the test needs a layer whose error is least below 0.95"
    refined = refine_scales(network, process, groups, {name: layer}, batches)[name]
    best = FACTORS[first + int(np.argmin(errors[first:]))]
    assert refined.activation_scale[0] == pytest.approx(np.float32(start * best), rel=1e-6)


def test_layers_that_share_a_scale_still_share_it_and_no_scale_leaves_the_searched_range(
    recorded: Recorded, process: DenoisingProcess, groups: StepGroups
) -> None:
    network, batches = recorded
    names = [n for n in quantizable_layers(network) if n.endswith(("to_q", "to_k", "to_v"))][:3]
    scales = [0.3 + 0.1 * g for g in range(len(groups))]
    layers = {name: qparams_of(network, name, scales, zero_point=1) for name in names}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    ticks: list[int] = []

    class Counter:
        def stage(self, title: str, total: int) -> None: ...
        def advance(self, count: int = 1) -> None:
            ticks.append(count)

        def message(self, text: str) -> None: ...

    refined = refine_scales(network, process, groups, layers, batches, progress=Counter())
    assert len({layer.activation_key for layer in refined.values()}) == 1
    factors = refined[names[0]].activation_scale / np.asarray(scales, np.float32)
    assert ((factors > 0.949) & (factors < 1.151)).all()
    assert len(set(factors.tolist())) > 1
    assert 0 < sum(ticks) == count_calls(groups.steps_of(process.timesteps), len(batches))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
