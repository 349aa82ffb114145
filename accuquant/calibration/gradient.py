"""The four ways to differentiate the end of several simulated denoising steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accuquant.denoising.process import DenoisingProcess, NetworkFn, ProcessState
from accuquant.denoising.schedulers import history_tensors, with_tensors
from accuquant.errors import unknown_name

from .calls import Calls
from .trajectory import TrajectoryBatch

#: (end point of the quantized branch, end point of the full-precision branch) -> scalar loss
LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one batch: both branches fork from its full-precision latents.

    `steps` are loop indices. The target is the full-precision latent after the last of them.
    """

    batch: TrajectoryBatch
    steps: range

    @property
    def start(self) -> Tensor:
        """The common latents [B, C, H, W] before the first step."""
        return self.batch.latents_before(self.steps.start)

    @property
    def target(self) -> Tensor:
        """The full-precision latents [B, C, H, W] after the last step."""
        return self.batch.latents_before(self.steps.stop)


GradientArm = Callable[[DenoisingProcess, NetworkFn, Segment, LossFn], float]


@torch.no_grad()
def rollout(
    process: DenoisingProcess, network: NetworkFn, segment: Segment
) -> tuple[list[Tensor], list[ProcessState]]:
    """Run the quantized branch on its own outputs -> M + 1 latents, and the sampler's M states."""
    generators = process.restore_state(segment.batch.state_before(segment.steps.start))
    latents, states = [segment.start], []
    for step in segment.steps:
        states.append(process.save_state(generators))
        latents.append(process.step(network, latents[-1], step, generators))
    return latents, states


def accuquant(process: DenoisingProcess, network: NetworkFn, segment: Segment, loss_fn: LossFn) -> float:
    """Copy the end point's gradient to every step: memory does not grow with the number of steps.

    dL/dx~_{t-k} ~= dL/dx~_{t-M} for every k; each step's network is differentiated on its own
    (AccuQuant, arXiv 2510.20348, overview figure). Adds to the parameters' gradients, returns the loss.
    """
    latents, states = rollout(process, network, segment)
    loss, gradient = end_point_gradient(loss_fn, latents[-1], segment.target)
    for step, before, state in zip(segment.steps, latents, states, strict=False):
        generators = process.restore_state(state)
        after = process.step(network, before, step, generators)
        torch.autograd.backward(after, gradient)
    return loss


def independent(process: DenoisingProcess, network: NetworkFn, segment: Segment, loss_fn: LossFn) -> float:
    """Compare after every single step, each from the full-precision latents: earlier methods, M = 1.

    Adds to the parameters' gradients; returns the loss summed over the steps.
    """
    total = 0.0
    for step in segment.steps:
        total += exact(process, network, Segment(segment.batch, range(step, step + 1)), loss_fn)
    return total


def exact(process: DenoisingProcess, network: NetworkFn, segment: Segment, loss_fn: LossFn) -> float:
    """Back-propagate through all steps at once: exact, and memory grows with the number of steps."""
    generators = process.restore_state(segment.batch.state_before(segment.steps.start))
    end = process.sample(network, segment.start, generators, steps=segment.steps)
    loss = loss_fn(end, segment.target)
    torch.autograd.backward(loss)
    return loss.item()


def checkpointed(process: DenoisingProcess, network: NetworkFn, segment: Segment, loss_fn: LossFn) -> float:
    """Back-propagate through all steps, recomputing each step's network: exact, memory of one step."""
    latents, states = rollout(process, network, segment)
    loss, gradient = end_point_gradient(loss_fn, latents[-1], segment.target)
    wanted: dict[str, Tensor] = {}  # the gradient at the history after the step
    for step, before, state in reversed(list(zip(segment.steps, latents, states, strict=False))):
        leaf = before.detach().requires_grad_(True)
        history = {name: t.detach().requires_grad_(True) for name, t in history_tensors(state.scheduler)}
        generators = process.restore_state(replace(state, scheduler=with_tensors(state.scheduler, history)))
        after = process.step(network, leaf, step, generators)
        remembered = dict(history_tensors(process.save_state().scheduler))
        passed_on = [name for name in wanted if remembered[name].requires_grad]
        torch.autograd.backward(
            [after, *(remembered[name] for name in passed_on)], [gradient, *(wanted[n] for n in passed_on)]
        )
        assert leaf.grad is not None
        gradient = leaf.grad
        wanted = {name: t.grad for name, t in history.items() if t.grad is not None}
    return loss


GRADIENT_ARMS: dict[str, GradientArm] = {
    "accuquant": accuquant,
    "independent": independent,
    "exact": exact,
    "checkpoint": checkpointed,
}


#: The calls that an arm makes for each of the steps: a rollout first, or differentiated ones alone.
_STEP_CALLS = {
    "accuquant": Calls(forward=1, backward=1),
    "independent": Calls(backward=1),
    "exact": Calls(backward=1),
    "checkpoint": Calls(forward=1, backward=1),
}


def gradient_arm(name: str) -> GradientArm:
    """Return the arm called `name`; raise UsageError that lists them where there is none."""
    if name not in GRADIENT_ARMS:
        raise unknown_name("gradient", name, GRADIENT_ARMS)
    return GRADIENT_ARMS[name]


def count_calls(name: str, steps: int) -> Calls:
    """Return the network's calls in one iteration of the arm called `name` over `steps` steps."""
    return _STEP_CALLS[name] * steps


def end_point_gradient(loss_fn: LossFn, end: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """Return the loss, and its gradient at the end point."""
    leaf = end.detach().requires_grad_(True)
    loss = loss_fn(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient
