"""The work folder: every prefix of the work can be picked up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from accuquant.calibration.work_folder import WorkFolder
from accuquant.errors import CalibrationError
from accuquant.recipe import GroupResult

SETTINGS = {"steps": 4, "include": ("a", "b"), "seed": 0}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "out" / "recipe.safetensors"


def test_the_folder_lies_beside_the_recipe(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    assert work.path == recipe.parent / "recipe.safetensors.partial"
    kept = json.loads((work.path / "settings.json").read_text())
    assert kept == {**SETTINGS, "include": ["a", "b"], "layout": 2}


def test_the_same_settings_open_it_again(recipe: Path) -> None:
    WorkFolder(recipe, SETTINGS)
    WorkFolder(recipe, dict(reversed(SETTINGS.items())))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 5}, "steps: 4 -> 5"),
        ({"seed": 1, "steps": 5}, "seed: 0 -> 1, steps: 4 -> 5"),
        ({"new": 1}, "new: None"),
    ],
)
def test_other_settings_are_refused_and_named(recipe: Path, changes: dict[str, int], named: str) -> None:
    WorkFolder(recipe, SETTINGS)
    with pytest.raises(
        CalibrationError, match=rf"other settings \({named}.*delete that folder to start over"
    ):
        WorkFolder(recipe, SETTINGS | changes)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_settings_that_cannot_be_read_are_refused(recipe: Path, text: str) -> None:
    (WorkFolder(recipe, SETTINGS).path / "settings.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"unreadable settings.json"):
        WorkFolder(recipe, SETTINGS)


def test_a_group_comes_back_exactly(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    scales = {"a": float(torch.tensor(0.1)), "b": 1e-38}
    result = GroupResult(0.1, 1 / 3, "rolled_back", "the loss became nan")
    assert work.load_group(2) is None
    work.save_group(2, scales, result)
    assert WorkFolder(recipe, SETTINGS).load_group(2) == (scales, result)
    assert work.load_group(0) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"scales": {}, "result": {"loss": 1}}'])
def test_a_damaged_group_counts_as_unfinished(recipe: Path, text: str) -> None:
    work = WorkFolder(recipe, SETTINGS)
    (work.path / "group_000.json").write_text(text)
    assert work.load_group(0) is None


def test_a_folder_of_another_layout_is_refused(recipe: Path) -> None:
    marker = WorkFolder(recipe, SETTINGS).path / "settings.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"layout": 1}))
    with pytest.raises(CalibrationError, match=r"other settings \(layout: 1 -> 2\)"):
        WorkFolder(recipe, SETTINGS)


def test_removing_leaves_nothing(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    work.save_group(0, {}, GroupResult(1, 1))
    work.remove()
    assert not work.path.exists()


def test_what_lies_there_without_settings_is_nobodys(recipe: Path) -> None:
    """A run that went on in a folder which another one had removed leaves such files."""
    work = WorkFolder(recipe, SETTINGS)
    work.save_group(0, {"a": 1.0}, GroupResult(1, 1))
    parts = [work.initial, work.shared, work.start(0), work.trajectories(3), work.inputs(1)]
    parts += [
        work.path / "shared.state",
        work.path / "group_001.state",
        work.path / "units" / "scales-000000",
    ]
    for path in (*parts, work.path / "trajectories.safetensors", work.path / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (work.path / "settings.json").unlink()
    other = WorkFolder(recipe, SETTINGS | {"seed": 1})
    assert other.load_group(0) is None
    assert {path.name for path in other.path.iterdir()} == {"settings.json", "notes.txt"}


def test_removing_takes_a_killed_runs_temporary_files_along(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    (work.path / ".group_000.json.abcdefgh.accuquant-tmp").mkdir()
    work.remove()
    assert not work.path.exists()


def test_what_the_first_recipe_was_made_of_is_removed_alone(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    for path in (work.start(0), work.trajectories(0), work.inputs(0), work.initial):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    work.units().map("scales", ["a"], str, lambda: None)
    work.forget_preparation()
    work.forget_preparation()
    assert {path.name for path in work.path.iterdir()} == {
        "settings.json", "trajectories", "initial.safetensors",
    }  # fmt: skip
    assert work.trajectories(0).is_file()


def test_a_removal_that_is_cut_short_never_mixes_two_runs(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = WorkFolder(recipe, SETTINGS)
    for group in range(5):
        work.save_group(group, {}, GroupResult(1, 1))

    def cut_short(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_short)
    monkeypatch.setattr("os.rmdir", cut_short)
    with pytest.raises(KeyboardInterrupt):
        work.remove()
    assert (work.path / "settings.json").is_file()
    assert [WorkFolder(recipe, SETTINGS).load_group(group) for group in range(5)] == [None] * 5
