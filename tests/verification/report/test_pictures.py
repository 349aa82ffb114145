from __future__ import annotations

import base64
import gc
import io
import weakref

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accuquant.verification.report.pictures import Gallery, Selection, png, signed_difference


def decode(uri: str) -> Image.Image:
    header, data = uri.split(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def make_gallery(
    reference: Tensor,
    quantized: Tensor,
    psnr: Tensor,
    *,
    seed: int,
    prompts: tuple[str, ...] = (),
    num_first: int = 8,
    num_worst: int = 2,
    batch_size: int = 2,
) -> Gallery:
    selection = Selection(num_first, num_worst)
    for batch in zip(*(values.split(batch_size) for values in (reference, quantized, psnr)), strict=True):
        selection.add(*batch)
    return selection.gallery(seed=seed, prompts=prompts)


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


def test_the_batches_that_images_come_in_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    reference, quantized = torch.rand(2, 40, 1, 8, 8, generator=generator)
    psnr = torch.rand(40, generator=generator).mul(4).round()  # many are equal: the earlier one is shown
    whole = make_gallery(reference, quantized, psnr, seed=5, num_worst=6, batch_size=40)
    for batch_size in (1, 3, 16):
        assert whole == make_gallery(reference, quantized, psnr, seed=5, num_worst=6, batch_size=batch_size)
    order = sorted(range(8, 40), key=lambda k: float(psnr[k]))
    assert [picture.seed - 5 for picture in whole.worst] == order[:6]


def test_pictures_that_are_kept_hold_no_batch_in_memory() -> None:
    selection = Selection(1, 1)
    batches = [torch.rand(4, 1, 2, 2) for _ in range(8)]
    alive = [weakref.ref(batch.untyped_storage()) for batch in batches]
    for number in range(len(batches)):
        batch, batches[number] = batches[number], torch.zeros(0)
        selection.add(batch, batch, torch.linspace(30 - number, 10 - number, 4))
    del batch
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    assert selection.gallery(seed=0).worst[0].seed == 31


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
