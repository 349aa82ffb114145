from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.pasting import Pasting
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start, seeded_starts
from accuquant.verification.measure.stored_starts import StoredStarts


def seeded() -> Iterator[Start]:
    process = DenoisingProcess(DDPMScheduler(), 2)
    labels = {"class_labels": torch.arange(5)}
    return seeded_starts(process, (1, 2, 2), count=5, batch_size=2, seed=3, conditioning=labels)


def test_starts_are_read_as_often_as_wanted_and_go_on_with_the_same_noise(tmp_path: Path) -> None:
    wanted, stored = list(seeded()), StoredStarts(tmp_path, seeded())
    assert len(stored) == 3
    for _ in range(2):
        for start, expected in zip(stored, wanted, strict=True):
            torch.testing.assert_close(start.latents, expected.latents, rtol=0, atol=0)
            assert start.conditioning.tensors.keys() == {"class_labels"}
            assert torch.equal(
                start.conditioning.tensors["class_labels"], expected.conditioning.tensors["class_labels"]
            )
            for ours, theirs in zip(start.fresh_generators(), expected.fresh_generators(), strict=True):
                assert torch.equal(torch.randn(4, generator=ours), torch.randn(4, generator=theirs))
    assert torch.equal(stored.batch(1).latents, wanted[1].latents)


def test_all_that_conditions_a_trajectory_is_kept(tmp_path: Path) -> None:
    text = torch.randn(2, 2, 3, 4).to(torch.bfloat16)
    conditioning = Conditioning(
        {"encoder_hidden_states": text, "same": text},  # two names of one tensor
        channels=torch.randn(2, 2, 5, 2, 2),
        shared={"img_ids": torch.arange(12).reshape(4, 3).t()},
        pasting=Pasting(torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.ones(2, 1, 2, 2)),
    )
    start = Start(
        torch.randn(2, 4, 2, 2), tuple(torch.Generator().get_state() for _ in range(2)), conditioning
    )
    (again,) = StoredStarts(tmp_path, [start])
    flat, wanted = again.to_tensors(), start.to_tensors()
    assert flat.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert flat[name].dtype == tensor.dtype
        assert torch.equal(flat[name], tensor)


def test_starts_are_written_as_they_are_made(tmp_path: Path) -> None:
    def made() -> Iterator[Start]:
        for number, start in enumerate(seeded()):
            assert len(list(tmp_path.iterdir())) == number
            yield start

    assert len(StoredStarts(tmp_path, made())) == 3


def test_a_start_that_cannot_be_made_stops_the_run(tmp_path: Path) -> None:
    def broken() -> Iterator[Start]:
        yield next(seeded())
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        StoredStarts(tmp_path, broken())
