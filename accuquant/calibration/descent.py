"""Gradient descent on the ends of simulated denoising steps, and who judges it: held-out trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import CalibrationError

from .calls import Calls
from .descent_state import DescentState, Stateful
from .gradient import GradientArm, LossFn, Segment, count_calls, gradient_arm
from .trajectory import TrajectoryBatch


@dataclass(frozen=True)
class LearningSettings:
    """How much is learned, and by which gradient: `learning_rate` is Adam's at its highest.

    With `probe`, two batches are asked first whether there is anything to gain.
    """

    gradient: str = "accuquant"
    iterations: int = 32
    learning_rate: float = 1e-3
    probe: bool = False


#: Standard errors by which held-out trajectories have to end better. Asked at eight moments, a judge of 16
#: trajectories finds one that is better by one standard error in half of the descents that change nothing.
_CONFIDENCE = 2.0


class HeldOutJudge:
    """Compares the end-point errors of held-out trajectories with those before learning.

    What is learned counts as better where the errors fall by more than two standard errors, trajectory by
    trajectory on a log scale, and their median does not rise: with a handful of them, the lower of two
    medians is often luck, and so is a mean that a few trajectories decide. A trajectory that diverged before
    learning says nothing and is left out; one that diverges later counts against what was learned.
    """

    def __init__(self, before: Tensor, confidence: float | None = None) -> None:
        """Take the errors [N] before learning. Losses are medians over the trajectories that stay finite.

        `confidence` counts standard errors: fewer are enough where the judge is asked only once.
        Raises CalibrationError where none does.
        """
        self._all_before = before
        self._confidence = _CONFIDENCE if confidence is None else confidence
        self._judging = torch.isfinite(before)
        self.left_out = len(before) - int(self._judging.sum())
        if self.left_out == len(before):
            raise CalibrationError(
                f"held-out trajectories ({len(before)})",
                got="NaN or infinity at the end of every one, once the network is quantized",
                expected="finite latents: layers are too coarse to calibrate from here",
                remedy="Give more bits, leave layers in float (--exclude, --float-budget), or take more "
                "steps; the recipe of an earlier run is as it was",
            )
        self._before = before[self._judging]
        self.initial_loss = self.best_loss = self.last_loss = float(self._before.median())
        self.found_better = False
        self._best_change = 0.0

    def is_best(self, errors: Tensor) -> bool:
        """Return whether `errors` [N] are better than those before learning, and the best so far."""
        errors = errors[self._judging].nan_to_num(nan=math.inf, posinf=math.inf)
        self.last_loss = float(errors.median())
        tiny = torch.finfo(torch.float32).tiny
        change = (errors.clamp_min(tiny) / self._before.clamp_min(tiny)).log()
        mean = float(change.mean())
        error_of_mean = float(change.std(correction=1)) / math.sqrt(len(change)) if len(change) > 1 else 0.0
        lower = mean + self._confidence * error_of_mean < 0 and self.last_loss <= self.initial_loss
        if not (lower and mean < self._best_change):
            return False
        self._best_change, self.best_loss, self.found_better = mean, self.last_loss, True
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that a judgement depends on; one made from the same "before" takes it back."""
        return {
            "before": self._all_before,
            "best_change": self._best_change,
            "best_loss": self.best_loss,
            "last_loss": self.last_loss,
            "found_better": self.found_better,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self._best_change, self.found_better = state["best_change"], state["found_better"]
        self.best_loss, self.last_loss = state["best_loss"], state["last_loss"]

    def note(self) -> str:
        """Say which trajectories did not judge, or ""."""
        if not self.left_out:
            return ""
        return f"{self.left_out} of {len(self._judging)} held-out trajectories diverge and do not judge"

    def verdict(self) -> str:
        """Say why nothing was kept."""
        before, last = f"loss {self.initial_loss:.3g}", f"at the end {self.last_loss:.3g}"
        left_out = f"; {self.note()}" if self.left_out else ""
        return f"no moment was better on held-out trajectories: {before}, {last}{left_out}"


class Judge(Stateful, Protocol):
    """Looks at what was learned so far, keeps it where it is the best, and says whether to go on."""

    def __call__(self) -> bool:
        """Judge."""


def descend(
    network: nn.Module,
    process: DenoisingProcess,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    draws: Iterable[tuple[Segment, LossFn]],
    settings: LearningSettings,
    *,
    moments: Sequence[float],
    judge: Judge,
    progress: Callable[[int], None] | None,
    kept: DescentState | None = None,
    arm: GradientArm | None = None,
) -> str:
    """Take a step for each of the first `settings.iterations` of `draws`; return what went wrong, or "".

    `judge` is asked at `moments`, shares of the iterations, and ends the descent by answering False. What an
    earlier run has `kept` is taken over, and its iterations are not made again. `arm` computes gradients, by
    default as `settings` say.
    """
    arm = arm or gradient_arm(settings.gradient)
    asked = judged_after(settings.iterations, moments)
    kept = kept or DescentState()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts: dict[str, Stateful] = {"optimizer": optimizer, "schedule": schedule, "judge": judge}
    done = kept.resume(parameters, parts)
    if done and progress is not None:
        progress(done)
    kept.keep(done, parameters, parts)
    for iteration, (segment, loss_fn) in zip(range(settings.iterations), draws, strict=False):
        if iteration < done:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss = arm(process, segment.batch.bind(network), segment, loss_fn)
        if not math.isfinite(loss):
            return f"the loss became {loss} at iteration {iteration + 1}"
        optimizer.step()
        schedule.step()
        go_on = iteration + 1 not in asked or judge()
        if go_on:
            kept.keep(iteration + 1, parameters, parts)
        if progress is not None:
            progress(1 if go_on else settings.iterations - iteration)
        if not go_on:
            break
    return ""


def judged_after(iterations: int, moments: Sequence[float]) -> set[int]:
    """Return after which iterations, counted from 1, the judge is asked."""
    return {math.ceil(iterations * share) for share in moments} - {0}


def descent_calls(settings: LearningSettings, moments: Sequence[float], steps: int, held_out: int) -> Calls:
    """Return the network's calls in a descent over `steps` steps that no judge ends, first errors included.

    `held_out` counts the batches that judge.
    """
    judgements = 1 + len(judged_after(settings.iterations, moments))
    learned = count_calls(settings.gradient, steps) * settings.iterations
    return learned + Calls(forward=judgements * held_out * steps)


def draw_segments(
    batches: Sequence[TrajectoryBatch], steps: range, loss: LossFn, seed: int, device: torch.device
) -> Iterator[tuple[Segment, LossFn]]:
    """Yield `steps` of one batch on `device` at a time with `loss`, the batches in a new order each round."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(batches), generator=rng).tolist():
            yield Segment(batches[index].to(device), steps), loss
