"""Presets set what is not given, and nothing else."""

from __future__ import annotations

import pytest

from accuquant.calibration import CalibrationSettings
from accuquant.calibration.presets import PRESETS, preset_values
from accuquant.errors import UsageError


def test_balanced_is_what_there_is_without_a_preset() -> None:
    assert CalibrationSettings.preset("balanced") == CalibrationSettings()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_fields_and_no_others(name: str) -> None:
    settings = CalibrationSettings.preset(name)
    differs = {key for key, value in vars(CalibrationSettings()).items() if getattr(settings, key) != value}
    assert differs <= {*PRESETS[name], "preset_name"}
    assert settings.to_dict()["preset_name"] == name
    others = {key: value for key, value in PRESETS[name].items() if key != "calibration_steps"}
    assert {key: getattr(settings, key) for key in others} == others


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_given_wins_over_the_preset(name: str) -> None:
    settings = CalibrationSettings.preset(name, num_trajectories=5, iterations=3, weight_bits=4)
    assert (settings.num_trajectories, settings.iterations, settings.weight_bits) == (5, 3, 4)
    assert settings.calibration_steps == CalibrationSettings.preset(name).calibration_steps


def test_a_preset_costs_less_or_more_than_the_default_as_its_name_says() -> None:
    def spent(name: str) -> tuple[int, ...]:
        settings = CalibrationSettings.preset(name)
        return (
            settings.num_trajectories,
            settings.simulated_steps,
            settings.group_iterations,
            settings.trajectory_iterations,
        )

    pairs = zip(spent("fast"), spent("balanced"), spent("best"), strict=True)
    assert all(low <= middle <= high for low, middle, high in pairs)
    assert spent("fast") != spent("balanced") != spent("best")
    assert not CalibrationSettings.preset("best").probe


@pytest.mark.parametrize("make", [preset_values, CalibrationSettings.preset])
def test_an_unknown_preset_lists_the_known_ones(make: type) -> None:
    with pytest.raises(UsageError, match=r"preset 'quick': .*expected fast or balanced or best"):
        make("quick")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_never_simulates_more_steps_than_are_sampled_with(name: str) -> None:
    assert CalibrationSettings.preset(name, steps=3).simulated_steps == 3


def test_best_simulates_every_step() -> None:
    assert CalibrationSettings.preset("best", steps=40).simulated_steps == 40
