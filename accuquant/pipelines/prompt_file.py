"""Prompts from a file: one a line, a JSON list, or the captions of COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accuquant.errors import SourceError, UsageError

#: Keys of an object that may hold its prompt.
_KEYS = ("prompt", "caption", "text")
_FORMS = "a text file with one prompt a line, a JSON list of prompts, or COCO captions (annotations)"


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a file, in its order.

    A file that ends in .json holds a list of texts, a list of objects with a "prompt", "caption" or "text",
    or COCO's captions: of each image the caption with the lowest id, in the order of the images' ids. Any
    other holds one prompt a line. Raises SourceError for a file that is not UTF-8 or no JSON, UsageError
    for one without a prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _of_json(path, json.loads(text)) if path.suffix.lower() == ".json" else text.split("\n")
    except (ValueError, RecursionError) as fault:  # UnicodeDecodeError and JSONDecodeError among them
        kind = "a JSON file in UTF-8" if path.suffix.lower() == ".json" else "a UTF-8 text file"
        raise SourceError(
            f"--prompts '{path}'", got=str(fault), expected=kind, remedy="Correct the file"
        ) from fault
    # a line ends where an editor shows it to end: splitlines would also split at U+2028 and the like
    prompts = tuple(line.strip() for line in found if line.strip())
    if not prompts:
        raise UsageError(
            f"--prompts '{path}'",
            got="no prompt",
            expected=_FORMS,
            remedy="Write some of the prompts that you sample with into it",
        )
    return prompts


def _of_json(path: Path, data: Any) -> list[str]:
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        return _coco_captions(path, data["annotations"])
    if not isinstance(data, list):
        raise _other_form(path, f"a JSON {type(data).__name__}")
    return [_text_of(path, item) for item in data]


def _coco_captions(path: Path, annotations: list[Any]) -> list[str]:
    """Return one caption for each image: COCO has five."""
    chosen: dict[int, tuple[int, str]] = {}
    for entry in annotations:
        try:
            image, number, caption = int(entry["image_id"]), int(entry["id"]), str(entry["caption"])
        except (KeyError, TypeError) as fault:
            raise _other_form(path, f"annotations without captions ({fault})") from fault
        if image not in chosen or number < chosen[image][0]:
            chosen[image] = number, caption
    return [chosen[image][1] for image in sorted(chosen)]


def _text_of(path: Path, item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in _KEYS:
            if isinstance(item.get(key), str):
                return str(item[key])
    raise _other_form(path, f"the entry {json.dumps(item)[:100]}")


def _other_form(path: Path, got: str) -> UsageError:
    return UsageError(
        f"--prompts '{path}'", got=got, expected=_FORMS, remedy="Write the file in one of these forms"
    )
