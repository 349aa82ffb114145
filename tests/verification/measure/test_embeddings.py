"""An engine whose text encoders are not the pipeline's starts from its own embeddings, and alone does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from accuquant._util.progress import Silent
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start, seeded_start
from accuquant.verification.measure.embeddings import embedding_errors, embedding_notes
from accuquant.verification.measure.rollout import Branches, roll_out

PROCESS = DenoisingProcess(DDIMScheduler(clip_sample=False), 2)


def begun(scale: float, same: float = 1.0) -> Start:
    text = {"text": scale * torch.arange(1.0, 4.0).reshape(3, 1), "same": torch.full((3, 1), same)}
    return seeded_start(PROCESS, (1, 2, 2), range(3), seed=0, conditioning=text)


def conditioned(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return conditioning["text"].reshape(-1, 1, 1, 1).expand_as(sample)


def final(engine_start: Start | None) -> Mapping[str, Tensor]:
    branches = Branches(conditioned, conditioned, conditioned)
    return roll_out(PROCESS, branches, begun(1.0), engine_start=engine_start, progress=Silent()).final


def test_only_the_engine_takes_its_own_embeddings() -> None:
    own, other = final(None), final(begun(1.5))
    assert torch.equal(own["engine"], own["reference"])
    assert torch.equal(other["reference"], own["reference"])
    assert torch.equal(other["simulated"], own["reference"])
    # two DDIM steps are linear in the prediction: half as much again of it moves each image in proportion
    moved = (other["engine"] - other["reference"]).reshape(3, -1)
    torch.testing.assert_close(moved[2], 3 * moved[0])
    assert bool((moved.abs() > 1e-3).all())


def test_an_error_is_relative_to_the_embedding_and_what_is_equal_is_left_out() -> None:
    assert embedding_errors(begun(1.0), begun(1.02)) == {"text": pytest.approx(0.02, rel=1e-5)}
    assert embedding_errors(begun(1.0), begun(1.0, same=3.0)) == {"same": pytest.approx(2.0)}


def test_the_note_names_weights_and_tensors() -> None:
    (note,) = embedding_notes(begun(1.0), begun(1.02), "int8")
    assert "int8 weights" in note
    assert "first 3 prompts differs: text by 2.00%." in note
    (note,) = embedding_notes(begun(1.0), begun(1.0), "int8")
    assert "not at all" in note
