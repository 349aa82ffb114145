"""The models that ship with the package are trained ones, and show what they should."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DiTPipeline, LDMPipeline, StableDiffusionPipeline

from accuquant.bundled import EMOJI_DIT, EMOJI_UNET, FASHION_TEXT

COLORS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200)}


def test_the_text_model_paints_the_colour_that_the_prompt_names() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(FASHION_TEXT).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        [f"a {color} pullover" for color in COLORS],
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(k) for k in range(len(COLORS))],
        output_type="np",
    ).images
    for image, color in zip(images, COLORS, strict=True):
        cloth = image[image.min(-1) < 0.7].mean(0)  # the background is white
        distances = {name: np.linalg.norm(cloth - np.array(rgb) / 255) for name, rgb in COLORS.items()}
        assert min(distances, key=distances.__getitem__) == color


def test_the_text_model_is_verified_with_prompts_that_it_was_not_calibrated_with() -> None:
    calibrated, others = (
        (FASHION_TEXT / name).read_text().splitlines() for name in ("prompts.txt", "other-prompts.txt")
    )
    assert len(set(calibrated)) == len(set(others)) == 48
    assert not set(calibrated) & set(others)


def _emoji(labels: list[int]) -> np.ndarray:
    pipe = DiTPipeline.from_pretrained(EMOJI_DIT).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(labels, num_inference_steps=8, generator=generator, output_type="np").images


def test_the_transformer_paints_the_class_that_it_is_given() -> None:
    names = {name: int(label) for label, name in DiTPipeline.load_config(EMOJI_DIT)["id2label"].items()}
    images = _emoji([names["face"]] * 4 + [names["clock"]] * 4)
    red, green, blue = images[:, 10:22, 10:22].mean((1, 2)).T
    assert (np.minimum(red, green)[:4] > blue[:4] + 0.2).all()  # faces are yellow
    assert (np.abs(red - blue)[4:] < 0.2).all()  # clocks are white


def test_the_unet_paints_coloured_things_on_white() -> None:
    pipe = LDMPipeline.from_pretrained(EMOJI_UNET).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(4, generator=generator, num_inference_steps=8, output_type="np").images
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 0.9
    middle = images[:, 8:24, 8:24].mean((1, 2))
    assert (middle.max(-1) - middle.min(-1)).mean() > 0.12
