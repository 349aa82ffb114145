"""Learn the activation scales of one step group by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.recipe import GroupResult
from accuquant.simulate import quantized_layers

from .gradient import Segment, gradient_arm, rollout
from .trajectory import TrajectoryBatch

#: When the held-out trajectories are asked, as shares of the iterations.
_MOMENTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
#: Moments in a row without progress that end the descent.
_PATIENCE = 3


@dataclass(frozen=True)
class LearningSettings:
    """How the scales of a group are learned: Adam on their logarithms, with a cosine schedule."""

    gradient: str = "accuquant"
    iterations: int = 100
    learning_rate: float = 1e-3


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

    `batches` are learned from; `held_out` decides at six moments of the descent: more iterations also fit
    the trajectories that are learned from ever closer. Where no moment lowers the end-point error of the
    held-out trajectories, and where the loss turns NaN, the group goes back to its initial scales and the
    result says so. The descent ends early after three moments in a row without progress.
    """
    judge = _Judge(network, process, steps, held_out, group)
    before = judge.initial_loss
    if settings.iterations == 0:
        return GroupResult(before, before, "initial", "no iterations asked for")
    layers = quantized_layers(network).values()
    initial = [layer.scale_of(group) for layer in layers]
    for layer in layers:
        layer.learning = True
    fault = _descend(network, process, steps, batches, settings, before, seed, judge, progress)
    for layer, scale in zip(layers, initial, strict=True):
        layer.learning = False
        if fault:
            layer.set_scale(group, scale)
        layer.revert(group)
    if judge.found_better and not fault:
        return GroupResult(before, judge.best_loss)
    note = fault or (
        f"no moment was better on held-out trajectories: loss {before:.3g}, at the end {judge.last_loss:.3g}"
    )
    return GroupResult(before, before, "rolled_back", note)


class _Judge:
    """Compares a group's end-point errors on held-out trajectories with those before learning.

    Scales count as better where the errors fall by more than one standard error, sample by sample on a log
    scale: with a handful of trajectories, the lower of two medians is often luck.
    """

    def __init__(
        self,
        network: nn.Module,
        process: DenoisingProcess,
        steps: range,
        held_out: Sequence[TrajectoryBatch],
        group: int,
    ) -> None:
        self._evaluated = (network, process, steps, held_out)
        self._layers = list(quantized_layers(network).values())
        self._group = group
        self._before = self._errors()
        self.initial_loss = self.best_loss = self.last_loss = float(self._before.median())
        self.found_better = False
        self._best_change = 0.0
        self._without_progress = 0

    def _errors(self) -> Tensor:
        return held_out_errors(*self._evaluated).clamp_min(torch.finfo(torch.float32).tiny)

    def __call__(self) -> bool:
        """Keep the present scales where they are the best so far; return whether to go on."""
        errors = self._errors()
        self.last_loss = float(errors.median())
        change = (errors / self._before).log()
        mean = float(change.mean())
        error_of_mean = float(change.std(correction=1)) / math.sqrt(len(change)) if len(change) > 1 else 0.0
        if mean + error_of_mean < 0 and mean < self._best_change:
            self._best_change, self.best_loss, self.found_better = mean, self.last_loss, True
            self._without_progress = 0
            for layer in self._layers:
                layer.commit(self._group)
        else:
            self._without_progress += 1
        return self._without_progress < _PATIENCE


@torch.no_grad()
def held_out_errors(
    network: nn.Module, process: DenoisingProcess, steps: range, batches: Sequence[TrajectoryBatch]
) -> Tensor:
    """Return the end-point error of every sample after `steps` -> [N]."""
    errors = []
    for batch in batches:
        segment = Segment(batch, steps)
        end = rollout(process, batch.bind(network), segment)[0][-1]
        errors.append(sample_errors(end, segment.target))
    return torch.cat(errors)


def _descend(
    network: nn.Module,
    process: DenoisingProcess,
    steps: range,
    batches: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    typical: float,
    seed: int,
    judge: Callable[[], bool],
    progress: Callable[[int], None] | None,
) -> str:
    """Run the optimizer while `judge` says so; return what went wrong, or an empty string."""
    arm = gradient_arm(settings.gradient)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    rng = torch.Generator().manual_seed(seed)
    moments = {math.ceil(settings.iterations * share) for share in _MOMENTS}
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
        go_on = iteration + 1 not in moments or judge()
        if progress is not None:
            progress(1 if go_on else settings.iterations - iteration)
        if not go_on:
            break
    return ""
