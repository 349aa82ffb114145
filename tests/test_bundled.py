"""The models that ship with the package are trained ones, and show what they should."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from accuquant.bundled import FASHION_TEXT

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
