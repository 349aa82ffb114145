from __future__ import annotations

from typing import Any

import pytest

from accuquant.errors import UsageError
from accuquant.runtime.parts_choice import runs_on_engine

ALL: dict[str, Any] = {"held": True, "engine": "openvino", "named": False, "device": "cpu"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"engine": "onnxruntime"}, True),
        ({"held": False}, False),
        ({"engine": "tensorrt"}, False),
        ({"named": True}, False),
        ({"device": "cuda"}, False),
    ],
)
def test_auto_takes_the_engine_where_nothing_speaks_against_it(
    change: dict[str, Any], expected: bool
) -> None:
    assert runs_on_engine("auto", **ALL | change) is expected
    assert runs_on_engine("torch", **ALL | change) is False


@pytest.mark.parametrize("change", [{}, {"held": False}, {"device": "cuda"}, {"engine": "tensorrt"}])
def test_the_engine_is_taken_where_it_is_asked_for(change: dict[str, Any]) -> None:
    assert runs_on_engine("engine", **ALL | change) is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"engine": "onnxruntime-cuda"},
            "--parts engine: got --engine onnxruntime-cuda, expected openvino or",
        ),
        ({"named": True}, "--parts engine: got --pipeline or --variant as well"),
    ],
)
def test_what_the_engine_cannot_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        runs_on_engine("engine", **ALL | change)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"parts 'gpu'.*auto or engine or torch"):
        runs_on_engine("gpu", **ALL)  # type: ignore[arg-type]
