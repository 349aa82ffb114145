from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accuquant.errors import SourceError, UsageError
from accuquant.pipelines.prompt_file import read_prompts
from accuquant.pipelines.task import Task


def written(folder: Path, data: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "data",
    [
        ["a cat", "a dog"],
        [{"prompt": "a cat", "seed": 3}, {"caption": "a dog"}],
        [{"text": "a cat"}, "a dog"],
    ],
)
def test_a_json_list_holds_prompts(data: list[Any], tmp_path: Path) -> None:
    assert Task.read(prompts=written(tmp_path, data)).prompts == ("a cat", "a dog")


def test_coco_gives_one_caption_an_image_in_the_order_of_the_images(tmp_path: Path) -> None:
    captions = [
        {"image_id": 9, "id": 30, "caption": "A second caption."},
        {"image_id": 9, "id": 21, "caption": "A bear.\n"},
        {"image_id": 2, "id": 77, "caption": "Two planes."},
    ]
    path = written(tmp_path, {"info": {}, "images": [{"id": 2}], "annotations": captions})
    assert read_prompts(path) == ("Two planes.", "A bear.")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prompts": ["a"]}, "got a JSON dict, expected a text file with one prompt a line"),
        (
            {"annotations": [{"image_id": 1, "id": 2, "bbox": []}]},
            r"annotations without captions \('caption'\)",
        ),
        ([{"title": "a"}], r'the entry \{"title": "a"\}'),
        ([3], "the entry 3"),
        ([], "got no prompt"),
    ],
)
def test_json_of_another_form_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompts(written(tmp_path, data))


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("a cat\n")
    with pytest.raises(SourceError, match="expected a JSON file in UTF-8"):
        read_prompts(tmp_path / "p.json")
