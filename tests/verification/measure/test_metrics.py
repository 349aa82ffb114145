from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from accuquant.errors import VerificationError
from accuquant.verification.measure.metrics import Curve, Summary, cosine, mse, psnr, ssim, to_images


def test_psnr_of_a_constant_difference_has_a_closed_form() -> None:
    reference = torch.full((2, 1, 4, 4), 0.5)
    images = reference + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert psnr(images, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_psnr_of_identical_images_is_finite() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert psnr(image, image).tolist() == [100.0]


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 3, 12, 20)])
def test_ssim_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(shape, generator=generator)
    images = (reference + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    wanted = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
    assert isinstance(wanted, torch.Tensor)
    assert ssim(images, reference).tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_ssim_of_one_image_is_one_value() -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image).tolist() == pytest.approx([1.0])


def test_ssim_refuses_images_smaller_than_half_its_window() -> None:
    with pytest.raises(VerificationError, match="images of 5x8 pixels"):
        ssim(torch.rand(1, 1, 5, 8), torch.rand(1, 1, 5, 8))


def test_cosine_of_vectors_at_sixty_degrees_is_a_half() -> None:
    latents = torch.tensor([[1.0, 0.0]]).view(1, 1, 1, 2)
    reference = torch.tensor([[0.5, math.sqrt(3) / 2]]).view(1, 1, 1, 2)
    assert cosine(latents, reference).tolist() == pytest.approx([0.5])


def test_mse_is_one_value_an_image() -> None:
    reference = torch.zeros(2, 1, 2, 2)
    latents = torch.stack([torch.full((1, 2, 2), 2.0), torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])])
    assert mse(latents, reference).tolist() == [4.0, 4.0]


def test_images_are_clamped_to_zero_and_one() -> None:
    assert to_images(torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"got shape \(1, 1, 4, 4\)"):
        psnr(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4))


def test_a_diverging_seed_moves_the_mean_and_not_the_median() -> None:
    summary = Summary.of([40.0, 41.0, 42.0, 1.0, 43.0])
    assert summary == Summary(median=41.0, mean=33.4, minimum=1.0, maximum=43.0)


def test_a_curve_summarizes_over_images_at_every_step() -> None:
    curve = Curve.of(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 90.0]]))
    assert curve.median == (2.0, 20.0)
    assert curve.mean == (2.0, 40.0)
    assert curve.p10 == pytest.approx((1.2, 12.0))
    assert curve.p90 == pytest.approx((2.8, 76.0))
