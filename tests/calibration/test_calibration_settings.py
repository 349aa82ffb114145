"""The settings are checked before any work begins."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from accuquant.calibration import CalibrationSettings
from accuquant.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("group_size", 0),
        ("num_trajectories", 0),
        ("iterations", -1),
        ("shared_iterations", -1),
        ("batch_size", 0),
        ("weight_bits", 1),
        ("weight_bits", 9),
        ("activation_bits", 1),
        ("activation_bits", 16),
        ("float_budget", -0.1),
        ("float_budget", 1.1),
        ("float_budget", math.nan),
        ("learning_rate", 0.0),
        ("shared_learning_rate", 2.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_names_the_option(name: str, value: Any) -> None:
    option = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{option}: got .* expected a value from "):
        CalibrationSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("gradient", "accuquant or independent or exact or checkpoint"),
        ("observer", "mse or norm or minmax or percentile"),
        ("rounding", "gptq or nearest"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name: str, names: str) -> None:
    changes: dict[str, Any] = {name: "best"}
    with pytest.raises(UsageError, match=rf"{name} 'best': .*expected {names}"):
        CalibrationSettings(**changes)


def test_the_dictionary_is_json_and_complete() -> None:
    settings = CalibrationSettings(include=("a*", "b"))
    data = json.loads(json.dumps(settings.to_dict()))
    assert data["include"] == ["a*", "b"]
    assert data.keys() == vars(settings).keys()
    data.update(include=tuple(data["include"]), exclude=tuple(data["exclude"]))
    assert CalibrationSettings(**data) == settings
