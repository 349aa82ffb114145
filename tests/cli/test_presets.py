"""Who decides an option of calibrate: the command line, then --config, then --preset, then the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import accuquant.calibration
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.presets import PRESETS
from accuquant.cli import calibrate
from accuquant.cli.main import main


class StopError(Exception):
    """Ends a command where the calibration would begin."""


@pytest.fixture
def settings_of(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives the settings that `accuquant calibrate` calibrates with."""
    seen: list[CalibrationSettings] = []

    def stop(_source: object, settings: CalibrationSettings, **_others: object) -> None:
        seen.append(settings)
        raise StopError

    monkeypatch.setattr(accuquant.calibration, "calibrate", stop)

    def run(*arguments: str, config: str = "") -> CalibrationSettings:
        file = tmp_path / "config.toml"
        file.write_text(f"[calibrate]\n{config}", encoding="utf-8")
        output = str(tmp_path / "recipe.safetensors")
        assert main(["calibrate", str(tiny_pipeline), "-o", output, "--config", str(file), *arguments]) == 1
        return seen.pop()

    return run


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_that_of_the_library(settings_of: Any, name: str) -> None:
    assert settings_of("--preset", name) == CalibrationSettings.preset(name)


def test_without_a_preset_it_is_balanced(settings_of: Any) -> None:
    assert settings_of() == CalibrationSettings()


def test_an_option_wins_over_the_file_and_the_file_over_the_preset(settings_of: Any) -> None:
    file = "num-trajectories = 7\niterations = 9"
    settings = settings_of("--preset", "fast", "--iterations", "4", config=file)
    assert (settings.iterations, settings.num_trajectories) == (4, 7)
    assert settings.shared_iterations == PRESETS["fast"]["shared_iterations"]
    assert settings.preset_name == "fast"


def test_an_option_at_the_value_of_its_default_still_wins(settings_of: Any) -> None:
    default = CalibrationSettings().num_trajectories
    assert PRESETS["fast"]["num_trajectories"] != default
    assert settings_of("--preset", "fast", "--num-trajectories", str(default)).num_trajectories == default


@pytest.mark.parametrize("order", [("--preset", "best"), ()])
def test_the_file_may_choose_the_preset_and_an_option_another(
    settings_of: Any, order: tuple[str, ...]
) -> None:
    settings = settings_of(*order, config='preset = "fast"\niterations = 3')
    name = order[-1] if order else "fast"
    assert settings == CalibrationSettings.preset(name, iterations=3)


def test_the_presets_of_the_command_are_those_of_the_library() -> None:
    assert tuple(PRESETS) == calibrate.PRESETS


def test_more_calibration_steps_than_steps_are_one_line(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "recipe.safetensors"
    options = ["--steps", "4", "--calibration-steps", "5"]
    assert main(["calibrate", str(tiny_pipeline), "-o", str(output), *options]) == 2
    assert "--calibration-steps: got 5, more than the 4 of --steps" in capsys.readouterr().err
    assert not output.exists()
