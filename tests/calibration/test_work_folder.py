"""The work folder: every prefix of the work can be picked up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from accuquant.calibration.trajectory import record_trajectories
from accuquant.calibration.work_folder import WorkFolder
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import CalibrationError
from accuquant.recipe import GroupResult

SETTINGS = {"steps": 4, "include": ("a", "b"), "seed": 0}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "out" / "recipe.safetensors"


def test_the_folder_lies_beside_the_recipe(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    assert work.path == recipe.parent / "recipe.safetensors.partial"
    assert json.loads((work.path / "settings.json").read_text()) == {**SETTINGS, "include": ["a", "b"]}


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


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_trajectories_come_back_as_they_were(recipe: Path, pointwise: nn.Module, scheduler: Any) -> None:
    process = DenoisingProcess(scheduler, 4)
    batches = record_trajectories(
        pointwise, process, (1, 4, 4), num_trajectories=5, batch_size=2, seed=1,
        conditioning={"class_labels": torch.arange(5)},
    )  # fmt: skip
    work = WorkFolder(recipe, SETTINGS)
    assert work.load_trajectories() is None
    work.save_trajectories(batches)
    fresh = DenoisingProcess(scheduler, 4)
    loaded = WorkFolder(recipe, SETTINGS).load_trajectories()
    assert loaded is not None
    assert len(loaded) == len(batches) == 3
    for ours, theirs in zip(loaded, batches, strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        given, kept = ours.conditioning.arguments(), theirs.conditioning.arguments()
        assert given.keys() == kept.keys() == {"class_labels"}
        assert torch.equal(given["class_labels"], kept["class_labels"])
        with torch.no_grad():
            for step in range(4):
                generators = fresh.restore_state(ours.states[step])
                after = fresh.step(ours.bind(pointwise), ours.latents[step], step, generators)
                assert torch.equal(after, theirs.latents[step + 1])


def test_a_truncated_file_counts_as_absent(
    recipe: Path, pointwise: nn.Module, process: DenoisingProcess
) -> None:
    work = WorkFolder(recipe, SETTINGS)
    work.save_trajectories(
        record_trajectories(pointwise, process, (1, 4, 4), num_trajectories=2, batch_size=2, seed=1)
    )
    path = work.path / "trajectories.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert work.load_trajectories() is None


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


def test_removing_leaves_nothing(recipe: Path) -> None:
    work = WorkFolder(recipe, SETTINGS)
    work.save_group(0, {}, GroupResult(1, 1))
    work.remove()
    assert not work.path.exists()


def test_what_lies_there_without_settings_is_nobodys(recipe: Path) -> None:
    """A run that went on in a folder which another one had removed leaves such files."""
    work = WorkFolder(recipe, SETTINGS)
    work.save_group(0, {"a": 1.0}, GroupResult(1, 1))
    for path in (work.initial, work.shared, work.path / "trajectories.safetensors", work.path / "notes.txt"):
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
