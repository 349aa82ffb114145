"""Find out how a pipeline guides that is not written down: what makes its scheduler's input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from accuquant.calibration_facts import COPIES
from accuquant.denoising.guidance import Guidance
from accuquant.errors import CalibrationError
from accuquant.pipelines.capture import Captured, Step
from accuquant.pipelines.families import default_of
from accuquant.pipelines.task import Task

#: Arguments of a pipeline that hold a scale; the first that it has is tried first.
_SCALES = ("true_cfg_scale", "guidance_scale")


def guidance_of(pipe: Any, task: Task, captured: Captured) -> Guidance:
    """Return the guidance that makes the scheduler's input of the network's output in the first step.

    Raises CalibrationError where none does.
    """
    seen = captured.steps[0]
    copies = len(seen.sample) // captured.count
    for guidance in _candidates(pipe, task, seen, copies):
        if _makes(guidance, seen):
            return guidance
    raise CalibrationError(
        f"pipeline {type(pipe).__name__}",
        got=f"{copies} predictions of the network, of which the scheduler gets something else",
        expected=f"one of the kinds of guidance {', '.join(COPIES)}",
        remedy="Sample with another guidance scale, or without. To add a kind, see docs/pipelines.md",
    )


def further_axis(seen: Step) -> int | None:
    """Return the axis along which the network's sample is longer than the scheduler's, if there is one."""
    pairs = zip(seen.sample.shape[1:], seen.before.shape[1:], strict=True)
    longer = [axis for axis, (ours, theirs) in enumerate(pairs, 1) if ours > theirs]
    return longer[0] if longer else None


def behind(tensor: Tensor, length: int, axis: int) -> Tensor:
    """Return what stands behind the first `length` entries along `axis`."""
    return tensor.narrow(axis, length, tensor.shape[axis] - length)


def _candidates(pipe: Any, task: Task, seen: Step, copies: int) -> Iterator[Guidance]:
    shorter = seen.model_output.shape[1] < seen.output.shape[1]
    accepted = inspect.signature(pipe.__call__).parameters
    scales = [_chosen(pipe, task, name, 1.0) for name in _SCALES if name in accepted] or [1.0]
    rescales = (
        {0.0, _chosen(pipe, task, "guidance_rescale", 0.0)} if "guidance_rescale" in accepted else {0.0}
    )
    for kind in (kind for kind, count in COPIES.items() if count == copies and kind != "embedded"):
        for scale in scales if kind != "none" else [1.0]:
            for rescale in rescales if kind == "classifier-free" else {0.0}:
                for negated in (False, True):
                    yield Guidance(kind, scale, 1.0, rescale, shorter, negated)


def _chosen(pipe: Any, task: Task, name: str, otherwise: float) -> float:
    value = getattr(task, name)
    return default_of(pipe, name, otherwise) if value is None else float(value)


def _makes(guidance: Guidance, seen: Step) -> bool:
    made = guidance.combine(seen.output, seen.before.shape[1])
    return made.shape == seen.model_output.shape and bool(
        torch.allclose(made, seen.model_output, rtol=1e-4, atol=1e-6)
    )
