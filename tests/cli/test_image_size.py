"""The option --image-size: a side, or width and height."""

from __future__ import annotations

from typing import Any

import click
import pytest

from accuquant.cli._task import task_options


def parsed(text: str) -> Any:
    @click.command()
    @task_options
    def command(**options: Any) -> Any:
        return options["image_size"]

    return command.main(["--image-size", text], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("64x32", (64, 32)), ("64X32", (64, 32)), ("8x8", (8, 8)), ("8", 8)]
)
def test_a_side_or_width_and_height(text: str, size: int | tuple[int, int]) -> None:
    assert parsed(text) == size


@pytest.mark.parametrize(
    "text", ["7", "64x7", "64x", "x64", "64x32x16", "-64", "64.0", "large", "", "64 x 32"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' is neither a side of at least 8 pixels"):
        parsed(text)
