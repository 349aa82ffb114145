"""Trajectories in a file: what comes back, and what stays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from accuquant.calibration.gradient import Segment, rollout
from accuquant.calibration.stored_batch import StoredBatch, save_batch
from accuquant.calibration.tensor_file import TensorFile
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import CPU


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trajectories" / "0.safetensors"


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_a_batch_comes_back_as_it_was(path: Path, pointwise: nn.Module, scheduler: Any) -> None:
    process = DenoisingProcess(scheduler, 4)
    (batch,) = record_trajectories(
        pointwise, process, (1, 4, 4), num_trajectories=2, batch_size=2, seed=1,
        conditioning={"class_labels": torch.arange(2)},
    )  # fmt: skip
    save_batch(path, batch)
    stored = StoredBatch(path)
    assert len(stored) == 2
    assert torch.equal(stored.latents, batch.latents)
    assert len(stored.states) == 4
    given, kept = stored.conditioning.arguments(), batch.conditioning.arguments()
    assert given.keys() == kept.keys() == {"class_labels"}
    assert torch.equal(given["class_labels"], kept["class_labels"])
    fresh = DenoisingProcess(scheduler, 4)
    with torch.no_grad():
        for step in (2, 0, 3, 1):
            for states in (stored.state_before(step), stored.states[step]):
                generators = fresh.restore_state(states)
                after = fresh.step(stored.bind(pointwise), stored.latents_before(step), step, generators)
                assert torch.equal(after, batch.latents[step + 1])
    assert torch.equal(stored.latents_before(4), batch.latents[4])


def test_a_segment_of_a_stored_batch_runs_as_in_memory(
    path: Path, pointwise: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]
) -> None:
    save_batch(path, batches[1])
    ends = []
    for batch in (batches[1], StoredBatch(path).to(CPU)):
        segment = Segment(batch, range(2, 5))
        ends.append((rollout(process, batch.bind(pointwise), segment)[0][-1], segment.target))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_nothing_is_kept_of_what_was_read(path: Path, batches: list[TrajectoryBatch]) -> None:
    save_batch(path, batches[0])
    stored = StoredBatch(path)
    first = stored.latents_before(0)
    first.zero_()
    assert torch.equal(stored.latents_before(0), batches[0].latents[0])
    assert stored.latents_before(0).untyped_storage().nbytes() == batches[0].latents[0].nbytes
    assert not any(isinstance(value, torch.Tensor) for value in vars(stored).values())
    save_batch(path, batches[1])  # nothing holds the file, on Windows either
    assert torch.equal(stored.latents_before(3), batches[1].latents[3])
    path.unlink()


def test_a_truncated_file_counts_as_absent(path: Path, batches: list[TrajectoryBatch]) -> None:
    assert not TensorFile(path).whole()
    save_batch(path, batches[0])
    assert TensorFile(path).whole()
    path.write_bytes(path.read_bytes()[:-100])
    assert not TensorFile(path).whole()
