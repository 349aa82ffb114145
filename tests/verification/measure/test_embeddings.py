"""An engine whose text encoders are not the pipeline's starts from its own embeddings, and alone does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from accuquant._util.progress import Silent
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start, seeded_starts
from accuquant.verification.measure.embeddings import embedding_errors, embedding_notes
from accuquant.verification.measure.rollout import Branches, NetworkCalls, roll_out

PROCESS = DenoisingProcess(DDIMScheduler(clip_sample=False), 2)


def starts(scale: float) -> list[Start]:
    text = {"text": scale * torch.arange(1.0, 4.0).reshape(3, 1), "same": torch.ones(3, 1)}
    return list(seeded_starts(PROCESS, (1, 2, 2), count=3, batch_size=2, seed=0, conditioning=text))


def conditioned(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return conditioning["text"].reshape(-1, 1, 1, 1).expand_as(sample)


def final(engine_starts: list[Start] | None) -> dict[str, Tensor]:
    found = roll_out(
        PROCESS, Branches(conditioned, conditioned, conditioned), starts(1.0),
        calls=NetworkCalls(4), progress=Silent(), engine_starts=engine_starts,
    )  # fmt: skip
    rollouts = list(found)
    return {name: torch.cat([r.final[name] for r in rollouts]) for name in rollouts[0].final}


def test_only_the_engine_takes_its_own_embeddings() -> None:
    own, other = final(None), final(starts(1.5))
    assert torch.equal(own["engine"], own["reference"])
    assert torch.equal(other["reference"], own["reference"])
    assert torch.equal(other["simulated"], own["reference"])
    # two DDIM steps are linear in the prediction: half as much again of it moves each image in proportion
    moved = (other["engine"] - other["reference"]).reshape(3, -1)
    torch.testing.assert_close(moved[2], 3 * moved[0])
    assert bool((moved.abs() > 1e-3).all())


def test_an_engine_that_lacks_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        final(starts(1.5)[:1])


def test_an_error_is_relative_to_all_of_an_embedding_and_what_is_equal_is_left_out() -> None:
    assert embedding_errors(starts(1.0), starts(1.02)) == {"text": pytest.approx(0.02, rel=1e-5)}
    (note,) = embedding_notes(starts(1.0), starts(1.02), "int8")
    assert "int8 weights" in note
    assert "text by 2.00%" in note
    (note,) = embedding_notes(starts(1.0), starts(1.0), "int8")
    assert "not at all" in note


def test_the_images_of_a_batch_are_weighed_by_their_embeddings() -> None:
    (first, second), others = starts(1.0), starts(1.0)
    tensors = dict(others[1].conditioning.tensors)
    tensors["text"] = tensors["text"] + 1  # image 3 has the text 3
    others[1] = replace(others[1], conditioning=Conditioning(tensors))
    expected = (1 / (1 + 4 + 9)) ** 0.5
    assert embedding_errors([first, second], others)["text"] == pytest.approx(expected)
