"""Pages that are given back: less resident memory, and the same values."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from accuquant.networks.mapped_pages import give_back


def resident(path: Path) -> int:
    """Return the bytes of a mapped file that are in memory."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and head == "Rss:":
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_mapped_weights_leave_memory_and_come_back_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that were not written yet cannot be dropped
    mapped = load_file(path)["weight"]
    assert torch.equal(mapped, weight)
    before = resident(path)
    assert before >= weight.nbytes
    give_back([mapped])
    assert resident(path) < before / 2
    assert torch.equal(mapped, weight)


def test_what_is_not_mapped_keeps_its_values() -> None:
    own, changed = torch.arange(5000.0), torch.zeros(3)
    changed += 1
    give_back([own, changed, own[::2], torch.empty(0), torch.empty(4, device="meta")])
    assert torch.equal(own, torch.arange(5000.0))
    assert changed.tolist() == [1, 1, 1]
