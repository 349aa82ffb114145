"""Calibrate by min-max: nothing is clipped that the calibration set has."""

from __future__ import annotations

from .calibration_set import every_step
from .method import Found, Method, Run
from .observed import batch_sizes, observe
from .ranges import ranged


def find(run: Run) -> Found:
    """Return one scale a layer for all steps; weights are rounded to the nearest level."""
    picks = every_step(batch_sizes(run), len(run.process))
    return Found(ranged(run, observe(run, picks), "minmax"), {"calls": len(picks)})


METHOD = Method(
    name="minmax",
    meaning="min-max ranges of one set over all steps, weights to the nearest level",
    source="TensorRT and ONNX Runtime call it MinMax; Krishnamoorthi, arXiv 1806.08342, section 3.1",
    matched="the range of each activation, over every step of every calibration trajectory",
    not_matched="weights and zero-points: the scales (least squared error for each output channel) and "
    "zero-points that all methods here start from",
    find=find,
    formats=("int8", "fp8"),
)
