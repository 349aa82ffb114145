"""Every method calibrates and is recorded; what clashes with it is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.methods.method import OWN_SETTINGS
from accuquant.calibration.methods.registry import METHODS
from accuquant.cli.calibrate import METHODS as OFFERED
from accuquant.errors import UsageError
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

RIVALS = [name for name in METHODS if name != "accuquant"]
#: What a recipe of AccuQuant's own way said of its settings before there were other methods.
SETTINGS = {
    "steps", "calibration_steps", "group_size", "num_trajectories", "iterations", "shared_iterations",
    "batch_size", "weight_bits", "activation_bits", "probe", "gradient", "observer", "refine", "rounding",
    "affine", "float_budget", "sensitivity", "include", "exclude", "learning_rate", "shared_learning_rate",
    "seed", "preset_name",
}  # fmt: skip


def settings_of(method: str, **changes: Any) -> CalibrationSettings:
    given = {"steps": 4, "num_trajectories": 4, "batch_size": 2, "affine": False, "exclude": ("mid_block*",)}
    return CalibrationSettings.preset("balanced", method=method, **(given | changes))


def test_the_command_line_offers_all_methods() -> None:
    assert tuple(METHODS) == OFFERED


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_says_what_it_is_from_where_and_what_it_lacks(method: Any) -> None:
    said = (method.meaning, method.source, method.matched, method.not_matched)
    assert all(len(text) > 20 for text in said)
    assert set(method.options) <= set(OWN_SETTINGS)


def test_the_default_is_accuquant_and_its_recipe_does_not_name_a_method() -> None:
    settings = CalibrationSettings()
    assert settings.method == "accuquant"
    assert settings.to_dict().keys() == SETTINGS
    assert CalibrationSettings.preset("balanced", method="accuquant") == settings


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_rival_has_no_use_for_is_refused(name: str) -> None:
    values = {
        "group_size": 5, "iterations": 3, "shared_iterations": 3, "probe": True, "gradient": "accuquant",
        "observer": "norm", "refine": True, "rounding": "gptq", "float_budget": 0.1, "sensitivity": True,
        "learning_rate": 0.1, "shared_learning_rate": 0.1, "equalize": "rotate",
    }  # fmt: skip
    assert values.keys() == set(OWN_SETTINGS)
    for option in METHODS[name].refused:
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(UsageError, match=rf"^{flag}: got given, with --method {name}, which has no use"):
            CalibrationSettings.preset("balanced", method=name, **{option: values[option]})


def test_settings_made_directly_are_checked_too() -> None:
    with pytest.raises(UsageError, match=r"--rounding: got nearest, with --method minmax"):
        CalibrationSettings(method="minmax", rounding="nearest")
    with pytest.raises(UsageError, match=r"preset of AccuQuant's own way, with --method minmax"):
        CalibrationSettings.preset("fast", method="minmax", num_trajectories=3)
    with pytest.raises(UsageError, match=r"method 'best': got an unknown name, expected accuquant or minmax"):
        CalibrationSettings(method="best")


@pytest.mark.parametrize("name", RIVALS)
def test_the_settings_of_a_rival_can_be_read_back(name: str) -> None:
    settings = settings_of(name)
    data = settings.to_dict()
    assert data["method"] == name
    assert data.keys().isdisjoint(METHODS[name].refused)
    data.update(include=tuple(data["include"]), exclude=tuple(data["exclude"]))
    assert CalibrationSettings(**data).to_dict() == settings.to_dict()


def test_an_estimate_of_a_rival_is_refused(tiny_source: Source) -> None:
    from accuquant.calibration.estimate import estimate

    with pytest.raises(UsageError, match=r"--dry-run: got --method mse, whose stages are not timed"):
        estimate(tiny_source, settings_of("mse"))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_calibrates_exports_and_runs(tiny_source: Source, tmp_path: Path, name: str) -> None:
    from accuquant.export import write_pipeline
    from accuquant.verification.verify import verify

    changes = {"iterations": 4} if "iterations" in METHODS[name].options else {}
    settings = settings_of(name, affine=True, **changes)
    recipe = calibrate(tiny_source, settings, output=tmp_path / "recipe.safetensors")
    assert Recipe.load(tmp_path / "recipe.safetensors").sha256() == recipe.sha256()
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.safetensors"]
    write_pipeline(tiny_source, recipe, tmp_path / "out")
    report = verify(tmp_path / "out", tiny_source, engine="onnxruntime", num_images=2, features="none")
    figures = report.to_dict()
    # 8 x 8 pixels: one level that float rounding moves, more often where scales differ by step, is 40 dB
    assert figures["lowering"]["summary"]["psnr"]["minimum"] > 33
    assert figures["fidelity"]["summary"]["psnr"]["minimum"] > 20


def test_the_same_seed_gives_the_same_bytes(tiny_source: Source, tmp_path: Path) -> None:
    settings = settings_of("pcr", weight_bits=4, iterations=3, num_trajectories=2, steps=2)
    made = [calibrate(tiny_source, settings, output=tmp_path / f"{k}.safetensors").to_bytes() for k in (0, 1)]
    assert made[0] == made[1]


def test_the_page_says_of_each_method_what_its_file_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        row = next(
            line for line in page.splitlines() if line.startswith(f"| `{method.name}` | {method.meaning}")
        )
        for text in (method.source, method.matched, method.not_matched):
            assert text in row.replace("\\|", "|")
