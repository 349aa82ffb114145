"""The decoder against the images that the pipelines make of their own last latents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import seeded_generators
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.verification.measure.decoder import load_decoder, unpacked
from accuquant.verification.measure.metrics import to_images


@pytest.mark.parametrize("kind", ["sd", "sdxl", "ldm", "super-resolution", "dit", "sd3", "flux"])
def test_latents_become_the_pipelines_images(
    kind: str, tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> None:
    source = load_source(tiny_text_pipeline(kind))
    prompts = () if kind in ("ldm", "super-resolution", "dit") else ("a cat", "dog")
    pictures = Task.read(images=picture_folder / "images").images if kind == "super-resolution" else ()
    task = Task(prompts=prompts, images=pictures, image_size=(24, 16) if kind == "flux" else None)
    conditioning = Conditioning()
    if kind == "flux":
        (start,) = open_starter(source, task, steps=2).starts(1, 1, seed=1)
        conditioning = start.conditioning
    pipe = open_pipeline(source, task)
    last: list[Tensor] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        last[:] = [result[0][:2]]
        return result

    pipe.scheduler.step = spy
    arguments = call_arguments(pipe, task, range(2), 2) | {"output_type": "np"}
    images = pipe(**arguments, generator=seeded_generators([1, 2])).images
    decoded = load_decoder(source)(unpacked(last[0], conditioning))
    torch.testing.assert_close(decoded, torch.as_tensor(images).permute(0, 3, 1, 2), rtol=0, atol=1e-5)


def test_pixel_pipelines_need_no_decoder(tiny_source: Source) -> None:
    assert load_decoder(tiny_source) is to_images


@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 80), (80, 32)])
def test_unpacking_is_that_of_flux(height: int, width: int) -> None:
    packed = torch.randn(2, (height // 16) * (width // 16), 16)
    ids = FluxPipeline._prepare_latent_image_ids(2, height // 16, width // 16, "cpu", torch.float32)
    conditioning = Conditioning(shared={"img_ids": ids})
    expected = FluxPipeline._unpack_latents(packed, height, width, 8)
    torch.testing.assert_close(unpacked(packed, conditioning), expected)


def test_latents_that_are_no_patches_are_left_alone() -> None:
    latents = torch.randn(1, 4, 8, 8)
    assert unpacked(latents, Conditioning()) is latents
