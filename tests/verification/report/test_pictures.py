from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from accuquant.verification.report.pictures import make_gallery, png, signed_difference


def decode(uri: str) -> Image.Image:
    header, data = uri.split(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_png_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(png(pixels))), pixels)


def test_a_difference_has_the_colour_of_its_sign_and_the_opacity_of_its_size() -> None:
    before = np.full((1, 3, 1), 0.5, np.float32)
    after = before + np.array([[[-0.1], [0.0], [0.2]]], np.float32)
    rgba = signed_difference(before, after, 2)
    assert rgba[0, :, 3].tolist() == [51, 0, 102]
    darker, brighter = rgba[0, 0, :3], rgba[0, 2, :3]
    assert darker[2] > darker[0]
    assert brighter[0] > brighter[2]


def test_a_gallery_shows_the_first_seeds_and_then_the_worst() -> None:
    reference = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    psnr = torch.tensor([30.0, 31.0, 32.0, 12.0, 40.0, 11.0])
    gallery = make_gallery(reference, reference, psnr, seed=100, num_first=2, num_worst=2)
    assert [p.seed for p in gallery.first] == [100, 101]
    assert [(p.seed, p.psnr) for p in gallery.worst] == [(105, 11.0), (103, 12.0)]
    assert gallery.pixelated


def test_each_picture_carries_its_prompt_counted_from_the_start_again() -> None:
    reference = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    psnr = torch.tensor([30.0, 31.0, 12.0])
    gallery = make_gallery(reference, reference, psnr, seed=0, prompts=("a boat", "a cat"), num_first=2)
    assert [p.prompt for p in gallery.first + gallery.worst] == ["a boat", "a cat", "a boat"]


def test_a_worst_image_is_not_shown_twice() -> None:
    reference = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    gallery = make_gallery(reference, reference, torch.tensor([10.0, 20.0]), seed=0)
    assert len(gallery.first) == 2
    assert gallery.worst == ()


def test_amplification_leaves_differences_unsaturated() -> None:
    reference = torch.zeros(1, 1, 16, 16)
    quantized = torch.full_like(reference, 0.1)
    gallery = make_gallery(reference, quantized, torch.tensor([20.0]), seed=0)
    assert gallery.amplification == 8  # 16 * 0.1 would be above 1
    assert np.asarray(decode(gallery.first[0].difference))[0, 0, 3] == round(0.8 * 255)


def test_large_colour_images_are_scaled_down() -> None:
    reference = torch.rand(1, 3, 512, 384, generator=torch.Generator().manual_seed(0))
    gallery = make_gallery(reference, reference, torch.tensor([50.0]), seed=0)
    image = decode(gallery.first[0].reference)
    assert (image.mode, image.size) == ("RGB", (192, 256))
    assert not gallery.pixelated
