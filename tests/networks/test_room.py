from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from accuquant.networks import room
from accuquant.networks.room import Room, free_main_memory


@pytest.fixture
def no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(room, "_LIMIT", tmp_path / "max")
    monkeypatch.setattr(room, "_TAKEN", tmp_path / "current")
    return tmp_path


def test_what_a_process_takes_it_holds(no_limit: Path) -> None:
    before = Room.of(nn.Linear(1, 1))
    taken = np.ones(8_000_000)
    after = Room.of(nn.Linear(1, 1))
    assert taken.nbytes * 0.9 < after.held - before.held < taken.nbytes * 1.5
    assert not after.gpu
    assert (after.held, after.free) == (after.held_main, after.free_main)
    assert after.free > 0


@pytest.mark.parametrize("limit", [None, "max"])
def test_without_a_limit_all_that_is_available_is_free(limit: str | None, no_limit: Path) -> None:
    if limit:
        (no_limit / "max").write_text(limit)
        (no_limit / "current").write_text("5000")
    assert free_main_memory() > 10_000_000


def test_a_container_has_what_its_limit_leaves(no_limit: Path) -> None:
    (no_limit / "max").write_text("9000\n")
    (no_limit / "current").write_text("5000\n")
    assert free_main_memory() == 4000
    (no_limit / "current").write_text("9500\n")
    assert free_main_memory() == 0
