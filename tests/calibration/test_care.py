"""Which layers' rounding was based on less than the others'."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accuquant.calibration import rounding
from accuquant.calibration.care import care_notes, rounding_facts
from accuquant.calibration.row_store import RowSums
from accuquant.calibration.unfolding import group_count, input_width


def facts(layer: nn.Module, rows: int, times: int = 1) -> dict[str, float]:
    store = RowSums(group_count(layer), input_width(layer))
    x = torch.randn(rows, group_count(layer) * input_width(layer))
    for _ in range(times):
        store.add(x)
    return rounding_facts(layer, store.moments())


def test_the_facts_count_inputs_groups_and_rows() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    expected = {"inputs": 18, "groups": 2, "blocks": 1, "rows": 300, "distinct": 100, "shrinkage": 0.05}
    assert facts(layer, 100, 3) == expected


def test_layers_with_enough_of_everything_are_not_named() -> None:
    assert care_notes({"rounding": {"l": facts(nn.Linear(8, 2), 16)}}) == ()
    assert care_notes({}) == ()


def test_layers_that_saw_few_distinct_inputs_are_named_with_the_count() -> None:
    few = {f"to_k.{n}": facts(nn.Linear(8, 2), 15 - n, 50) for n in range(6)}
    (note,) = care_notes({"rounding": {**few, "fine": facts(nn.Linear(8, 2), 16)}})
    assert "6 layers (to_k.0, to_k.1, to_k.2, to_k.3, ...)" in note
    assert "to_k.5: 10 for 8" in note
    assert "fine" not in note


def test_layers_that_fall_into_blocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MAX_WIDTH", 5)
    (note,) = care_notes({"rounding": {"wide": facts(nn.Linear(8, 2), 100)}})
    assert "1 layer (wide)" in note
    assert "blocks" in note
