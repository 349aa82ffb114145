"""Presets: how much a calibration takes, from the least to the most, each measured in docs/calibration.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accuquant.errors import unknown_name

#: Fields of CalibrationSettings by preset; the others are as without one.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"num_trajectories": 32, "calibration_steps": 8, "iterations": 0, "shared_iterations": 0},
    "balanced": {},
    "best": {"calibration_steps": 10_000, "iterations": 32, "shared_iterations": 16, "probe": False},
}


def preset_values(name: str) -> dict[str, Any]:
    """Return the fields that the preset `name` sets. Raises UsageError that lists them where there is none.

    `calibration_steps` is the most: no preset asks for more than are sampled with.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return dict(PRESETS[name])
