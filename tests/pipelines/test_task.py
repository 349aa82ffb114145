"""What the user samples: read from files, checked, summarized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accuquant.calibration_facts import CalibrationFacts, TaskFacts
from accuquant.errors import SourceError, UsageError
from accuquant.pipelines.task import Task


def facts(task: Task) -> TaskFacts:
    """Return what a recipe file would say of `task`."""
    return CalibrationFacts.of(json.loads(json.dumps({"task": task.to_dict()}))).task


def test_prompts_are_the_lines_that_hold_text(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog, running \n", encoding="utf-8")
    assert Task.read(prompts=file).prompts == ("a cat", "a dog, running")


def test_a_prompt_ends_at_the_end_of_its_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\na dog\x0bon a hill\u2028at night\n".encode())
    assert Task.read(prompts=file).prompts == ("a cat", "a dog\x0bon a hill\u2028at night")


def test_images_are_listed_in_order(picture_folder: Path) -> None:
    names = [Path(path).name for path in Task.read(images=picture_folder / "images").images]
    assert names == ["0.png", "1.png", "2.png"]


def test_a_folder_that_is_named_like_an_image_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").touch()
    assert Task.read(images=tmp_path).images == (str(tmp_path / "b.png"),)


@pytest.mark.parametrize("name", ["prompts", "images", "masks"])
def test_one_text_is_no_tuple_of_texts(name: str) -> None:
    one: dict[str, Any] = {name: "a cat"}
    with pytest.raises(UsageError, match=rf"Task\.{name}: got one text, expected a tuple of texts"):
        Task(**one)


@pytest.mark.parametrize("text", [b"", b"\n  \n", b"\xff\xfe\xfa"])
def test_a_file_without_a_prompt_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises((UsageError, SourceError), match=r"--prompts '.*prompts.txt'"):
        Task.read(prompts=tmp_path / "prompts.txt")


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--masks '.*': got no image"):
        Task.read(masks=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("strength", 0.0), ("strength", 1.1), ("guidance_rescale", 2.0), ("image_size", 4), ("num_frames", 0)],
)
def test_a_number_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')}: got {value:g}"):
        Task(**{name: value})


def test_the_summary_follows_the_contents_and_not_the_names(picture_folder: Path, tmp_path: Path) -> None:
    images = Task.read(images=picture_folder / "images")
    copies = []
    for path in images.images:
        copy = tmp_path / f"copy-{Path(path).name}"
        copy.write_bytes(Path(path).read_bytes())
        copies.append(str(copy))
    assert Task(images=tuple(copies)).to_dict() == images.to_dict()
    assert Task(images=tuple(copies[::-1])).to_dict() != images.to_dict()
    assert Task(prompts=("a",)).to_dict()["prompts"]["count"] == 1
    assert Task().to_dict()["prompts"] is None


def test_what_is_left_open_comes_from_the_recorded_task() -> None:
    recorded = Task(guidance_scale=3.0, strength=0.5, negative_prompt="blurred")
    filled = Task(prompts=("a",), strength=0.7).with_defaults(facts(recorded))
    assert (filled.guidance_scale, filled.strength, filled.negative_prompt) == (3.0, 0.7, "blurred")
    assert filled.prompts == ("a",)
    assert Task().with_defaults(TaskFacts()) == Task()


def test_what_was_calibrated_with_images_or_masks_is_not_sampled_without(picture_folder: Path) -> None:
    whole = Task.read(images=picture_folder / "images", masks=picture_folder / "masks", strength=0.5)
    images = Task.read(images=picture_folder / "images")
    message = r"--images: got none, expected images: it was calibrated with some"
    with pytest.raises(UsageError, match=message):
        Task(prompts=("a",)).with_defaults(facts(Task(images=images.images, strength=0.5)))
    with pytest.raises(UsageError, match=r"--masks: got none, .*with some\. Give --masks"):
        images.with_defaults(facts(whole))
    assert whole.with_defaults(facts(whole)) == whole
