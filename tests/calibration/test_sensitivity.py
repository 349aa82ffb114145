"""What each layer's quantization costs, and which layers a float budget buys."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.placement import Placement
from accuquant.calibration.sensitivity import measure_sensitivity, spend_float_budget
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.network import quantizable_layers
from accuquant.qparams import LayerQParams


def test_the_error_of_a_layer_is_that_of_the_next_latent(
    pointwise: nn.Module,
    process: DenoisingProcess,
    groups: StepGroups,
    batches: list[TrajectoryBatch],
    pointwise_qparams: Callable[..., LayerQParams],
) -> None:
    qparams = pointwise_qparams((0.6, 0.2))
    errors = measure_sensitivity(pointwise, process, groups, {"conv": qparams}, batches[0], num_steps=6)
    abar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    expected = 0.0
    for step, t in enumerate(int(t) for t in process.timesteps):
        now, before = abar[t], abar[t - 166] if t >= 166 else 1.0
        b = np.sqrt(1 - before) - np.sqrt(before / now) * np.sqrt(1 - now)
        x = batches[0].latents[step].double().numpy()
        s = 0.6 if step < 3 else 0.2
        added = b * 0.7 * (np.clip(np.rint(x / s), -8, 7) * s - x)
        expected += np.median((added**2).mean((1, 2, 3)))
    assert errors == {"conv": pytest.approx(expected, rel=1e-2)}


def test_the_network_is_left_as_it_was(make_unet: Callable[..., nn.Module]) -> None:
    unet, process = make_unet(), DenoisingProcess(_scheduler(), 4)
    groups = StepGroups.from_timesteps(process.timesteps, group_size=2, num_train_timesteps=1000)
    sampler = ActivationSampler(
        [name for name in quantizable_layers(unet) if "attentions" in name], [2, 2], 0
    )
    with sampler.watch(unet):
        (batch,) = record_trajectories(
            unet, process, (1, 8, 8), num_trajectories=2, batch_size=2, seed=0,
            before_step=lambda step: setattr(sampler, "group", step // 2),
        )  # fmt: skip
    qparams = initial_qparams(unet, sampler.samples(), weight_bits=4, activation_bits=8)
    modules = dict(unet.named_modules())
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    errors = measure_sensitivity(unet, process, groups, qparams, batch)
    assert list(errors) == list(qparams)
    assert all(error > 0 for error in errors.values())
    assert dict(unet.named_modules()) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    with torch.no_grad():
        generators = process.restore_state(batch.states[0])
        again = process.step(batch.bind(unet), batch.latents[0], 0, generators)
    assert torch.equal(again, batch.latents[1])


def _scheduler() -> object:
    from diffusers import DDPMScheduler

    return DDPMScheduler()


MACS = {"a": 10, "b": 30, "c": 40, "d": 15, "stem": 5}
ERRORS = {"a": 1.0, "b": 9.0, "c": 8.0, "d": 0.1}


def placement() -> Placement:
    return Placement(("a", "b", "c", "d"), ("stem",), MACS)


def test_no_budget_buys_nothing() -> None:
    assert spend_float_budget(placement(), ERRORS, 0.0) == []


@pytest.mark.parametrize(
    ("budget", "bought"),
    [(0.29, ["a", "d"]), (0.3, ["b"]), (0.4, ["b", "a"]), (0.45, ["b", "a"]), (0.7, ["b", "c"])],
)
def test_the_budget_goes_to_the_most_error_for_each_operation(budget: float, bought: list[str]) -> None:
    assert spend_float_budget(placement(), ERRORS, budget) == bought


def test_the_budget_is_never_exceeded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = [f"l{i}" for i in range(rng.integers(2, 12))]
        macs = {name: int(rng.integers(1, 100)) for name in names}
        errors = {name: float(rng.exponential()) for name in names}
        budget = float(rng.uniform(0, 0.9))
        bought = spend_float_budget(Placement(tuple(names), (), macs), errors, budget)
        left = budget * sum(macs.values()) - sum(macs[name] for name in bought)
        assert left >= 0
        assert all(macs[name] > left for name in names if name not in bought)


@pytest.mark.parametrize("budget", [0.95, 1.0])
def test_a_budget_that_buys_every_layer_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match=r"--float-budget: .* leaves no layer to quantize"):
        spend_float_budget(placement(), ERRORS, budget)


def test_a_layer_whose_error_is_not_finite_does_not_stop_the_others() -> None:
    assert spend_float_budget(placement(), ERRORS | {"a": math.inf}, 0.1) == ["a"]
