"""Trees of tensors and numbers as files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accuquant.units.tensor_tree import read_tree, size_of, storable, write_tree


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a" / "tree"


def test_every_value_comes_back_with_every_bit(path: Path) -> None:
    tree: dict[Any, Any] = {
        "numbers": [1, -(2**60), 0.1, 1 / 3, 5e-324, math.inf],
        3: {"text": "ä\n", "none": None, "truth": [True, False]},
        "tensors": [torch.tensor([0.1, -0.0]), torch.tensor(7), torch.zeros(0, 3, dtype=torch.int8)],
        "empty": [{}, []],
    }
    write_tree(path, tree)
    found = read_tree(path)
    assert list(found) == list(tree)
    assert found["numbers"] == tree["numbers"]
    assert [type(value) for value in found["numbers"]] == [int, int, float, float, float, float]
    assert found[3] == tree[3]
    assert found["empty"] == [{}, []]
    for ours, theirs in zip(found["tensors"], tree["tensors"], strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    assert size_of(tree) == 8 + 8


def test_a_number_that_is_none_stays_one(path: Path) -> None:
    write_tree(path, [math.nan, -math.inf])
    first, second = read_tree(path)
    assert math.isnan(first)
    assert second == -math.inf


def test_views_and_tensors_that_occur_twice_are_stored_as_what_they_are(path: Path) -> None:
    whole = torch.arange(100.0).reshape(10, 10)
    write_tree(path, {"column": whole[:, 3], "rows": [whole[2:4], whole[2:4]], "whole": (whole, whole)})
    found = read_tree(path)
    assert torch.equal(found["column"], whole[:, 3])
    assert all(torch.equal(rows, whole[2:4]) for rows in found["rows"])
    assert found["whole"][0] is found["whole"][1]
    assert storable(whole[3]).untyped_storage().nbytes() == 40


def test_an_optimizer_and_its_schedule_go_on_from_a_file_bit_for_bit(path: Path) -> None:
    def make() -> tuple[nn.Parameter, torch.optim.Adam, torch.optim.lr_scheduler.CosineAnnealingLR]:
        parameter = nn.Parameter(torch.linspace(-1, 1, 5))
        adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99))
        return parameter, adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, 9)

    def walk(steps: int, parameter: nn.Parameter, adam: torch.optim.Adam, schedule: object) -> None:
        assert isinstance(schedule, torch.optim.lr_scheduler.CosineAnnealingLR)
        for _ in range(steps):
            adam.zero_grad()
            (parameter**4 - parameter).sum().backward()
            adam.step()
            schedule.step()

    whole, stopped, again = make(), make(), make()
    walk(9, *whole)
    walk(4, *stopped)
    write_tree(path, [stopped[0], stopped[1].state_dict(), stopped[2].state_dict()])
    value, adam, schedule = read_tree(path)
    with torch.no_grad():
        again[0].copy_(value)
    again[1].load_state_dict(adam)
    again[2].load_state_dict(schedule)
    walk(5, *again)
    assert torch.equal(again[0], whole[0])


def test_what_is_no_whole_tree_counts_as_absent(path: Path) -> None:
    assert read_tree(path) is None
    write_tree(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-4])
    assert read_tree(path) is None
    path.write_bytes(b"")
    assert read_tree(path) is None
