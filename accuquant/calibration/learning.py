"""Learn the activation scales of one step group by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.denoising import DenoisingProcess
from accuquant.recipe import GroupResult
from accuquant.simulate import quantized_layers

from .gradient import Segment, gradient_arm, rollout
from .trajectory import TrajectoryBatch


@dataclass(frozen=True)
class LearningSettings:
    """How the scales of a group are learned: Adam on their logarithms, with a cosine schedule."""

    gradient: str = "accuquant"
    iterations: int = 100
    learning_rate: float = 1e-2


def sample_errors(end: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample: [B, ...], [B, ...] -> [B]."""
    return (end - target).square().flatten(1).mean(1)


def end_point_loss(end: Tensor, target: Tensor, scale: float = 0.0) -> Tensor:
    """Return ||x_{t-M} - x~_{t-M}||^2, mean over the elements (0-d).

    With `scale` > 0 a sample whose error e is far above it counts as scale * log(1 + e / scale): the few
    trajectories that diverge do not decide alone (the Cauchy loss of robust statistics).
    """
    errors = sample_errors(end, target)
    if scale > 0:
        errors = scale * torch.log1p(errors / scale)
    return errors.mean()


def learn_group(
    network: nn.Module,
    process: DenoisingProcess,
    steps: range,
    group: int,
    batches: Sequence[TrajectoryBatch],
    held_out: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> GroupResult:
    """Learn the scales of `group` in the simulated `network`, in place.

    `batches` are learned from; `held_out` decides, at four moments of the descent, and the best of them is
    kept: more iterations also fit the trajectories that are learned from ever closer. Where none lowers
    the end-point loss on the held-out trajectories, and where the loss turns NaN, the group goes back to
    its initial scales and the result says so.
    """
    before = evaluate(network, process, steps, held_out)
    if settings.iterations == 0:
        return GroupResult(before, before, "initial", "no iterations asked for")
    layers = quantized_layers(network).values()
    initial = [layer.scale_of(group) for layer in layers]
    losses = [before]

    def judge() -> None:
        losses.append(evaluate(network, process, steps, held_out))
        if losses[-1] < min(losses[:-1]):
            for layer in layers:
                layer.commit(group)

    for layer in layers:
        layer.learning = True
    fault = _descend(network, process, steps, batches, settings, before, seed, judge, progress)
    for layer, scale in zip(layers, initial, strict=True):
        layer.learning = False
        if fault:
            layer.set_scale(group, scale)
        layer.revert(group)
    if min(losses) < before and not fault:
        return GroupResult(before, min(losses))
    note = fault or f"the loss on held-out trajectories rose from {before:.3g} to {losses[-1]:.3g}"
    return GroupResult(before, before, "rolled_back", note)


def evaluate(
    network: nn.Module, process: DenoisingProcess, steps: range, batches: Sequence[TrajectoryBatch]
) -> float:
    """Return the median over samples of the end-point error after `steps`."""
    errors = [
        sample_errors(rollout(process, batch.bind(network), segment)[0][-1], segment.target)
        for batch in batches
        for segment in [Segment(batch, steps)]
    ]
    return float(torch.cat(errors).median())


def _descend(
    network: nn.Module,
    process: DenoisingProcess,
    steps: range,
    batches: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    typical: float,
    seed: int,
    judge: Callable[[], None],
    progress: Callable[[int], None] | None,
) -> str:
    """Run the optimizer and call `judge` four times; return what went wrong, or an empty string."""
    arm = gradient_arm(settings.gradient)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    rng = torch.Generator().manual_seed(seed)
    moments = {math.ceil(settings.iterations * quarter / 4) for quarter in (1, 2, 3, 4)}
    for iteration in range(settings.iterations):
        if iteration % len(batches) == 0:
            order = torch.randperm(len(batches), generator=rng).tolist()
        batch = batches[order[iteration % len(batches)]]
        optimizer.zero_grad(set_to_none=True)
        loss = arm(
            process,
            batch.bind(network),
            Segment(batch, steps),
            lambda end, target: end_point_loss(end, target, typical),
        )
        if not math.isfinite(loss):
            return f"the loss became {loss} at iteration {iteration + 1}"
        optimizer.step()
        schedule.step()
        if iteration + 1 in moments:
            judge()
        if progress is not None:
            progress(1)
    return ""
