"""The settings are checked before any work begins."""

from __future__ import annotations

import dataclasses
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
        ("calibration_steps", 0),
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
    settings = CalibrationSettings(
        include=("a*", "b"), calibration_steps=10, iterations=1, shared_iterations=2
    )
    data = json.loads(json.dumps(settings.to_dict()))
    assert data["include"] == ["a*", "b"]
    assert data.keys() == vars(settings).keys() - {"method", "format", "equalize"}
    data.update(include=tuple(data["include"]), exclude=tuple(data["exclude"]))
    assert CalibrationSettings(**data) == settings


def test_more_calibration_steps_than_are_sampled_with_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--calibration-steps: got 50, more than the 25 of --steps"):
        CalibrationSettings(steps=25, calibration_steps=50)


@pytest.mark.parametrize(
    ("steps", "calibration_steps", "group_size", "simulated", "size"),
    [
        (50, 50, 7, 50, 7),
        (50, 8, 5, 8, 1),
        (50, 16, 5, 16, 2),
        (50, 25, 5, 25, 2),
        (20, 10, 1, 10, 1),
        (6, None, 2, 6, 2),
    ],
)
def test_a_group_of_fewer_steps_spans_what_it_spans_of_the_sampled_ones(
    steps: int, calibration_steps: int | None, group_size: int, simulated: int, size: int
) -> None:
    settings = CalibrationSettings(steps=steps, calibration_steps=calibration_steps, group_size=group_size)
    assert (settings.simulated_steps, settings.simulated_group_size) == (simulated, size)
    assert settings.to_dict()["calibration_steps"] == simulated


def test_no_more_than_8_steps_are_simulated_unless_something_is_learned_from_them() -> None:
    assert CalibrationSettings(steps=1000).simulated_steps == 8
    assert CalibrationSettings(steps=1000, calibration_steps=1000).simulated_steps == 1000
    assert CalibrationSettings(steps=60, weight_bits=4).simulated_steps == 60
    assert CalibrationSettings(steps=60, iterations=1).simulated_steps == 60
    assert CalibrationSettings(steps=60, weight_bits=4, calibration_steps=8).simulated_steps == 8


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "learns"),
    [(8, 8, False), (7, 8, False), (6, 8, True), (4, 8, True), (8, 6, True), (8, 7, True)],
)
def test_learning_is_left_out_where_rounding_is_fine(
    weight_bits: int, activation_bits: int, learns: bool
) -> None:
    settings = CalibrationSettings(weight_bits=weight_bits, activation_bits=activation_bits)
    assert (settings.group_iterations > 0, settings.trajectory_iterations > 0) == (learns, learns)
    assert settings.to_dict()["iterations"] == settings.group_iterations
    assert settings.to_dict()["shared_iterations"] == settings.trajectory_iterations
    asked = dataclasses.replace(settings, iterations=3, shared_iterations=0)
    assert (asked.group_iterations, asked.trajectory_iterations) == (3, 0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"weight_bits": 4}, r"--weight-bits 4: got --format fp8, which has 8 bits and no other width"),
        ({"activation_bits": 6}, r"--activation-bits 6: got --format fp8"),
        ({"affine": True}, r"--affine: got --format fp8, which has no zero-points, expected --symmetric"),
        ({"method": "tfmq"}, r"--format fp8: got --method tfmq.*expected --method accuquant, minmax"),
        (
            {"rounding": "adaround"},
            r"--rounding adaround, which learns between two integers.*gptq or nearest",
        ),
    ],
)
def test_fp8_refuses_what_only_integers_have(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        CalibrationSettings.preset("balanced", format="fp8", **given)


def test_fp8_is_kept_and_int8_says_nothing() -> None:
    made = CalibrationSettings.preset("balanced", format="fp8", method="minmax", weight_bits=8)
    assert (made.affine, made.to_dict()["format"], made.to_dict()["affine"]) == (False, "fp8", False)
    assert "format" not in CalibrationSettings().to_dict()
    with pytest.raises(UsageError, match=r"format 'fp4'.*int8 or fp8"):
        CalibrationSettings.preset("balanced", format="fp4")
