"""Calibrate by AccuQuant: what is learned is judged after several simulated steps."""

from __future__ import annotations

from .method import OWN_SETTINGS, Method

METHOD = Method(
    name="accuquant",
    meaning="scales a step group, compensated rounding, and learning through several simulated steps",
    source="Lee et al., arXiv 2510.20348, abstract and overview figure",
    matched="step groups with scales of their own, the loss at the end of several steps, the copied gradient",
    not_matched="hyper-parameters, which no public source gives: they are measured (docs/calibration.md)",
    find=None,
    options=OWN_SETTINGS,
    one_set=False,
    formats=("int8", "fp8"),
)
