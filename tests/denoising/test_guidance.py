"""Guidance against the formulas of its papers, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.guidance import Guidance
from accuquant.errors import UsageError


def test_classifier_free_guidance_moves_away_from_the_unconditional_prediction() -> None:
    a, b = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    guided = Guidance("classifier-free", 5.0).combine(torch.cat([a, b]), 3)
    torch.testing.assert_close(guided, -4 * a + 5 * b)
    swapped = Guidance("conditional-first", 5.0).combine(torch.cat([b, a]), 3)
    torch.testing.assert_close(swapped, guided)


def test_image_and_text_guidance_is_equation_3_of_instruct_pix2pix() -> None:
    text, image, nothing = torch.randn(3, 1, 3, 4, 4, dtype=torch.float64)
    guided = Guidance("image-and-text", 7.0, 1.5).combine(torch.cat([text, image, nothing]), 3)
    torch.testing.assert_close(guided, nothing + 1.5 * (image - nothing) + 7.0 * (text - image))


def test_full_rescale_gives_each_image_the_deviation_of_the_conditional_prediction() -> None:
    a, b = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    guided = Guidance("classifier-free", 5.0, rescale=1.0).combine(torch.cat([a, b]), 3)
    for k in range(2):
        assert float(guided[k].std()) == pytest.approx(float(b[k].std()))
    half = Guidance("classifier-free", 5.0, rescale=0.5).combine(torch.cat([a, b]), 3)
    torch.testing.assert_close(half, 0.5 * guided + 0.5 * (-4 * a + 5 * b))


def test_without_guidance_the_prediction_stays() -> None:
    prediction = torch.randn(2, 6, 4, 4)
    assert Guidance().combine(prediction, 3) is prediction
    assert Guidance("embedded", 4.0).copies == 1
    assert torch.equal(Guidance(learned_variance=True).combine(prediction, 3), prediction[:, :3])


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"guidance 'perturbed': .*classifier-free"):
        Guidance("perturbed")


def test_conditioning_goes_to_the_network_one_copy_after_another() -> None:
    negative, positive = torch.zeros(3, 5, 2), torch.arange(3.0).reshape(3, 1, 1).expand(3, 5, 2)
    channels = torch.randn(6, 1, 2, 2)
    conditioning = Conditioning.from_batch({"text": torch.cat([negative, positive])}, channels, 2)
    assert conditioning.tensors["text"].shape == (3, 2, 5, 2)
    assert torch.equal(conditioning.arguments()["text"], torch.cat([negative, positive]))
    last = conditioning.rows(slice(1, 3))
    assert last.arguments()["text"][:, 0, 0].tolist() == [0, 0, 1, 2]
    sample = torch.zeros(4, 2, 2, 2)
    appended = last.append_channels(sample)
    np.testing.assert_array_equal(appended[:, 2], channels[[1, 2, 4, 5], 0])
    back = Conditioning.from_tensors(last.to_tensors())
    assert torch.equal(back.append_channels(sample), appended)
    assert back.arguments().keys() == {"text"}


def test_a_bound_network_sees_sample_channels_and_arguments() -> None:
    conditioning = Conditioning.of({"labels": torch.tensor([4, 7])})
    seen: dict[str, Any] = {}

    def network(sample: torch.Tensor, timestep: torch.Tensor, given: object) -> torch.Tensor:
        seen.update(sample=sample, timestep=timestep, given=given)
        return sample

    conditioning.bind(network)(torch.ones(2, 1, 2, 2), torch.tensor(5))
    assert seen["given"]["labels"].tolist() == [4, 7]
    assert seen["sample"].shape == (2, 1, 2, 2)
