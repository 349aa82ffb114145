"""The four gradient arms: against hand-derived formulas, and against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from accuquant.calibration.gradient import GRADIENT_ARMS, Segment, gradient_arm, rollout
from accuquant.calibration.learning import end_point_loss
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.network import quantizable_layers
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint

Floats = npt.NDArray[np.float64]


def coefficients(process: DenoisingProcess, step: int) -> tuple[float, float]:
    """Return DDIM's (a, b) of x' = a x + b eps, from the noise schedule alone."""
    betas = np.linspace(0.0001, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    t = int(process.timesteps[step])
    previous = t - 1000 // len(process)
    now, before = abar[t], abar[previous] if previous >= 0 else 1.0
    a = np.sqrt(before / now)
    return float(a), float(np.sqrt(1 - before) - a * np.sqrt(1 - now))


def by_hand(
    process: DenoisingProcess, segment: Segment, scale: float, *, copied: bool
) -> tuple[float, float]:
    """Return loss and dL / d log(scale) of the quantized pointwise network, 4 bits."""
    w, bias = 0.7, 0.1

    def quantized(x: Floats) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
        levels = np.rint(x / scale)
        inside = (levels >= -8) & (levels <= 7)
        clamped = np.clip(levels, -8, 7)
        return clamped * scale, inside, np.where(inside, clamped - x / scale, clamped)

    x = segment.start.double().numpy()
    latents = []
    for step in segment.steps:
        latents.append(x)
        a, b = coefficients(process, step)
        x = a * x + b * (w * quantized(x)[0] + bias)
    target = segment.target.double().numpy()
    loss = ((x - target) ** 2).mean()
    g = 2 * (x - target) / x.size
    total = 0.0
    for step, before in reversed(list(zip(segment.steps, latents, strict=True))):
        a, b = coefficients(process, step)
        _, inside, by_scale = quantized(before)
        total += (g * b * w * by_scale).sum()
        if not copied:
            g = g * (a + b * w * inside)
    return float(loss), float(total * scale)


@pytest.fixture
def learner(
    pointwise: nn.Module, groups: StepGroups, pointwise_qparams: Callable[..., LayerQParams]
) -> nn.Module:
    return learning(quantize_network(pointwise, [pointwise_qparams()], groups))


def learning(network: nn.Module) -> nn.Module:
    for layer in quantized_layers(network).values():
        layer.learning = True
    return network


def run(
    arm: str, process: DenoisingProcess, network: nn.Module, segment: Segment
) -> tuple[float, list[Tensor]]:
    """Return the loss and the gradients of all scales."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    loss = gradient_arm(arm)(process, segment.batch.bind(network), segment, end_point_loss)
    gradients = []
    for parameter in parameters:
        assert parameter.grad is not None
        gradients.append(parameter.grad.clone())
    return loss, gradients


@pytest.mark.parametrize(
    ("group", "steps"), [(0, range(0, 3)), (1, range(3, 6)), (0, range(1, 3)), (1, range(5, 6))]
)
@pytest.mark.parametrize("arm", ["accuquant", "exact", "checkpoint"])
def test_the_gradient_is_the_formula_by_hand(
    arm: str,
    group: int,
    steps: range,
    learner: nn.Module,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
) -> None:
    segment = Segment(batches[0], steps)
    loss, (gradient,) = run(arm, process, learner, segment)
    expected_loss, expected = by_hand(process, segment, (0.6, 0.2)[group], copied=arm == "accuquant")
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert gradient[group].item() == pytest.approx(expected, rel=1e-3)
    assert gradient[1 - group].item() == 0


def test_the_copied_gradient_differs_from_the_exact_one(
    learner: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]
) -> None:
    segment = Segment(batches[0], range(0, 3))
    (copied,) = run("accuquant", process, learner, segment)[1]
    (exact,) = run("exact", process, learner, segment)[1]
    assert abs(copied[0] / exact[0] - 1) > 0.01


def test_gradients_add_up_over_calls(
    learner: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]
) -> None:
    segment = Segment(batches[0], range(0, 3))
    for arm in GRADIENT_ARMS.values():
        (layer,) = quantized_layers(learner).values()
        layer.log_scale.grad = None
        arm(process, segment.batch.bind(learner), segment, end_point_loss)
        assert layer.log_scale.grad is not None
        once = layer.log_scale.grad.clone()
        arm(process, segment.batch.bind(learner), segment, end_point_loss)
        torch.testing.assert_close(layer.log_scale.grad, 2 * once)


def unet_learner(
    make_unet: Callable[..., nn.Module], scheduler: Any
) -> tuple[DenoisingProcess, nn.Module, nn.Module, TrajectoryBatch]:
    """Return process, float UNet, learning UNet and a batch; all layers quantized to 5 bits."""
    unet, process = make_unet(), DenoisingProcess(scheduler, 5)
    (batch,) = record_trajectories(unet, process, (1, 8, 8), num_trajectories=2, batch_size=2, seed=0)
    layers = []
    for index, (name, module) in enumerate(quantizable_layers(unet).items()):
        weight = module.get_parameter("weight").detach().numpy()
        kind = "conv2d" if weight.ndim == 4 else "linear"
        scale = np.full(weight.shape[WEIGHT_AXIS[kind]], np.abs(weight).max() / 127, np.float32)
        activation = np.array([0.15 + 0.001 * index, 0.1 + 0.001 * index], np.float32)
        layers.append(
            LayerQParams(name, kind, weight.shape, fingerprint(weight), scale, activation, activation_bits=5)
        )
    groups = StepGroups.from_timesteps(process.timesteps, group_size=3, num_train_timesteps=1000)
    return process, unet, learning(quantize_network(unet, layers, groups)), batch


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler(), DDPMScheduler(clip_sample=False)])
def test_checkpoint_agrees_with_exact_on_a_unet(make_unet: Callable[..., nn.Module], scheduler: Any) -> None:
    process, _, network, batch = unet_learner(make_unet, scheduler)
    segment = Segment(batch, range(0, 3))
    loss, exact = run("exact", process, network, segment)
    again, checkpoint = run("checkpoint", process, network, segment)
    assert again == loss
    assert loss > 0
    assert len(exact) > 10
    for a, b in zip(exact, checkpoint, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_all_arms_are_one_when_a_segment_is_one_step(
    make_unet: Callable[..., nn.Module], scheduler: Any
) -> None:
    process, _, network, batch = unet_learner(make_unet, scheduler)
    segment = Segment(batch, range(2, 3))
    loss, exact = run("exact", process, network, segment)
    for arm in ("accuquant", "independent", "checkpoint"):
        other, gradients = run(arm, process, network, segment)
        assert other == loss
        for a, b in zip(exact, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_independent_is_the_sum_of_single_steps(make_unet: Callable[..., nn.Module], scheduler: Any) -> None:
    process, _, network, batch = unet_learner(make_unet, scheduler)
    total, gradients = run("independent", process, network, Segment(batch, range(0, 3)))
    singles = [run("exact", process, network, Segment(batch, range(k, k + 1))) for k in range(3)]
    assert total == pytest.approx(sum(loss for loss, _ in singles))
    for index, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, torch.stack([g[index] for _, g in singles]).sum(0))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_both_branches_see_the_same_noise(make_unet: Callable[..., nn.Module], scheduler: Any) -> None:
    process, unet, _, batch = unet_learner(make_unet, scheduler)
    for steps in (range(3, 5), range(0, 5), range(1, 3)):
        latents, states = rollout(process, batch.bind(unet), Segment(batch, steps))
        assert len(latents) == len(steps) + 1
        assert len(states) == len(steps)
        for step, latent in zip(range(steps.start, steps.stop + 1), latents, strict=True):
            assert torch.equal(latent, batch.latents[step])
        with torch.no_grad():
            for step, before, after, state in zip(steps, latents, latents[1:], states, strict=False):
                generators = process.restore_state(state)
                assert torch.equal(process.step(batch.bind(unet), before, step, generators), after)


@pytest.mark.parametrize("arm", GRADIENT_ARMS)
def test_an_arm_gives_the_same_result_again_and_leaves_the_batch_alone(
    make_unet: Callable[..., nn.Module], arm: str
) -> None:
    process, _, network, batch = unet_learner(make_unet, DDPMScheduler())
    before = batch.latents.clone()
    segment = Segment(batch, range(1, 4))
    loss, gradients = run(arm, process, network, segment)
    torch.manual_seed(99)
    run("exact", process, network, Segment(batch, range(3, 5)))
    again, repeated = run(arm, process, network, segment)
    assert again == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, repeated, strict=True))
    assert torch.equal(batch.latents, before)


class Meter:
    """Counts the elements that autograd keeps alive for the backward pass."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0

    def pack(self, tensor: Tensor) -> Kept:
        return Kept(self, tensor)


class Kept:
    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor.detach()
        meter.live += tensor.numel()
        meter.peak = max(meter.peak, meter.live)

    def __del__(self) -> None:
        self.meter.live -= self.tensor.numel()


def peak(make_unet: Callable[..., nn.Module], arm: str, count: int) -> int:
    process, _, network, batch = unet_learner(make_unet, DDIMScheduler())
    meter = Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda kept: kept.tensor):
        run(arm, process, network, Segment(batch, range(0, count)))
    return meter.peak


@pytest.mark.parametrize(
    ("arm", "grows"), [("accuquant", 1), ("independent", 1), ("checkpoint", 1), ("exact", 4)]
)
def test_only_exact_keeps_more_than_one_graph_alive(
    make_unet: Callable[..., nn.Module], arm: str, grows: int
) -> None:
    assert peak(make_unet, arm, 4) == pytest.approx(grows * peak(make_unet, arm, 1), rel=0.05)


def test_an_unknown_arm_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"gradient 'fast': .* accuquant or independent or exact or checkpoint"
    ):
        gradient_arm("fast")
