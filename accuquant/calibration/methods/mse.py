"""Calibrate by the least squared error of the activations."""

from __future__ import annotations

from .calibration_set import every_step
from .method import Found, Method, Run
from .observed import batch_sizes, observe
from .ranges import ranged


def find(run: Run) -> Found:
    """Return one scale a layer for all steps; weights are rounded to the nearest level."""
    picks = every_step(batch_sizes(run), len(run.process))
    return Found(ranged(run, observe(run, picks), "mse"), {"calls": len(picks)})


METHOD = Method(
    name="mse",
    meaning="least squared error over one set of all steps, weights to the nearest level",
    source="Banner et al., arXiv 1810.05723, section 3",
    matched="the range of each activation, over every step of every calibration trajectory",
    not_matched="weights and zero-points: the scales (least squared error for each output channel) and "
    "zero-points that all methods here start from",
    find=find,
    formats=("int8", "fp8"),
)
