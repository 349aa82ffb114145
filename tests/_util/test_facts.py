"""Typed facts out of JSON that somebody else wrote."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from accuquant._util import facts
from accuquant._util.facts import Count, FactsError, Real, Sha256, Text, as_facts, parse_json, read_facts


@dataclass(frozen=True)
class Known:
    name: Text = ""
    count: Count = 0
    share: Real = 0.0
    digest: Sha256 = "0" * 64
    sizes: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    on: bool = False


def test_values_of_the_right_types_are_read_and_unknown_fields_are_ignored() -> None:
    read = as_facts({"name": "a", "share": 1, "sizes": [1, 2], "on": True, "of a later release": {}}, Known)
    assert read == Known(name="a", share=1.0, sizes=(1, 2), on=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("name", "a\x1b[2J"),
        ("name", "two\nlines"),
        ("name", "a" * 5000),
        ("count", "3"),
        ("count", 0.5),
        ("count", -1),
        ("count", 10**30),
        ("count", 10**400),
        ("count", True),
        ("share", float("inf")),
        ("share", float("nan")),
        ("share", 10**400),
        ("share", "0.5"),
        ("digest", "0" * 63),
        ("digest", 7),
        ("sizes", {}),
        ("sizes", [0]),
        ("sizes", "12"),
        ("on", 1),
    ],
)
def test_a_value_of_another_type_is_named_with_its_field(field: str, value: Any) -> None:
    with pytest.raises(FactsError, match=field):
        as_facts({field: value}, Known)
    gc.collect()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 70 + "]" * 70])
def test_nested_json_is_refused_however_deep(text: str) -> None:
    with pytest.raises(FactsError, match="nested more than 64 deep"):
        parse_json(text)
    assert parse_json("[" * 60 + "]" * 60)


@pytest.mark.parametrize("text", ["", "{", b"\xff", "1" * 5000, "{'a': 1}", '"\\ud800"', '{"\\uDC00": 1}'])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(FactsError):
        parse_json(text)


def test_a_file_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "x", "infinite": float("-inf")}))
    assert read_facts(path, Known).name == "x"
    monkeypatch.setattr(facts, "_MOST_BYTES", 8)
    with pytest.raises(FactsError, match=r"more than .* MB of JSON"):
        read_facts(path, Known)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
