"""Units of work: computed once, in any order, with the same result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accuquant.units import units
from accuquant.units.units import InMemory, KeptUnits, unit_seed

NAMES = [f"layer.{k}" for k in range(7)]


class Work:
    """Computes a tensor and a number for each unit; `stop_at` is the unit at which it is interrupted."""

    def __init__(self, stop_at: str = "") -> None:
        self.computed: list[str] = []
        self.done = 0
        self.stop_at = stop_at

    def __call__(self, unit: str) -> dict[str, Any]:
        if unit == self.stop_at:
            raise KeyboardInterrupt
        self.computed.append(unit)
        return {"tensor": torch.full((3,), float(NAMES.index(unit))), "number": 1 / (1 + NAMES.index(unit))}

    def advance(self) -> None:
        self.done += 1


def same(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a["tensor"], b["tensor"]) and a["number"] == b["number"]
        for a, b in zip(found, expected, strict=True)
    )


def test_units_of_an_interrupted_stage_are_not_computed_again(tmp_path: Path) -> None:
    expected = InMemory().map("s", NAMES, Work(), lambda: None)
    first = Work(stop_at="layer.4")
    with pytest.raises(KeyboardInterrupt):
        KeptUnits(tmp_path / "units").map("s", NAMES, first, first.advance)
    assert first.done == 4
    second = Work()
    found = KeptUnits(tmp_path / "units").map("s", NAMES, second, second.advance)
    assert same(found, expected)
    assert second.computed == NAMES[4:]
    assert second.done == 7
    third = Work()
    assert same(KeptUnits(tmp_path / "units").map("s", NAMES[::-1], third, third.advance), expected[::-1])
    assert third.computed == []


def test_a_unit_is_kept_before_it_is_reported(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    first, second = Work(), Work()
    with pytest.raises(KeyboardInterrupt):
        KeptUnits(tmp_path).map("s", NAMES, first, stop)
    KeptUnits(tmp_path).map("s", NAMES, second, second.advance)
    assert (first.computed, second.computed) == (NAMES[:1], NAMES[1:])


def test_stages_know_nothing_of_each_other(tmp_path: Path) -> None:
    kept = KeptUnits(tmp_path)
    kept.map("s", NAMES, Work(), lambda: None)
    for stage in ("s2", "s-1", "other"):
        work = Work()
        kept.map(stage, NAMES, work, work.advance)
        assert work.computed == NAMES


@pytest.mark.parametrize(("seconds", "size", "files"), [(1e9, 2**30, 1), (0.0, 2**30, 7), (1e9, 30, 3)])
def test_small_units_share_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, size: int, files: int
) -> None:
    monkeypatch.setattr(units, "EVERY", seconds)
    monkeypatch.setattr(units, "_BYTES", size)
    KeptUnits(tmp_path).map("s", NAMES, Work(), lambda: None)
    assert len(os.listdir(tmp_path / "s")) == files
    work = Work()
    KeptUnits(tmp_path).map("s", NAMES, work, work.advance)
    assert work.computed == []


def test_a_damaged_file_costs_its_units_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "EVERY", 0.0)
    KeptUnits(tmp_path).map("s", NAMES, Work(), lambda: None)
    path = sorted((tmp_path / "s").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-1])
    work = Work()
    found = KeptUnits(tmp_path).map("s", NAMES, work, work.advance)
    assert work.computed == ["layer.2"]
    assert same(found, InMemory().map("s", NAMES, Work(), lambda: None))


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], None]
) -> None:
    monkeypatch.setattr(units, "EVERY", 0.0)

    def fill_up(unit: str) -> Any:
        return torch.zeros(10_000 if unit == "layer.3" else 1)

    small_disk(20_000)
    with pytest.raises(Exception, match=r"too large|error 27"):
        KeptUnits(tmp_path).map("s", NAMES, fill_up, lambda: None)
    small_disk(2**30)
    computed: list[str] = []

    def once_more(unit: str) -> Any:
        computed.append(unit)
        return fill_up(unit)

    assert len(KeptUnits(tmp_path).map("s", NAMES, once_more, lambda: None)) == 7
    assert computed == NAMES[3:]


def test_seeds_of_units_are_their_own_and_the_same_everywhere() -> None:
    seeds = {unit_seed(seed, (batch, use)) for seed in range(3) for batch in range(50) for use in range(2)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    # numpy promises the stream of SeedSequence (NEP 19)
    assert unit_seed(0, (0, 0)) == 7896617691693857887
