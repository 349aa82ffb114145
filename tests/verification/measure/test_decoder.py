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
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.verification.measure.decoder import load_decoder, unpacked
from accuquant.verification.measure.metrics import to_images

PACKED = ("flux", "flux-kontext", "flux2", "qwen")
NEW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("flux-kontext", "flux2", "qwen", "zimage")]


@pytest.mark.parametrize("kind", ["sd", "sdxl", "ldm", "super-resolution", "dit", "sd3", "flux", *NEW])
def test_latents_become_the_pipelines_images(
    kind: str, tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> None:
    source, size = load_source(tiny_text_pipeline(kind)), (24, 16) if kind in PACKED else None
    prompts = () if kind in ("ldm", "super-resolution", "dit") else ("a cat", "dog")
    pictured = kind in ("super-resolution", "flux-kontext")
    pictures = Task.read(images=picture_folder / "images").images if pictured else ()
    task = Task(prompts=prompts, images=pictures, image_size=16 if kind == "zimage" else size)
    conditioning = Conditioning()
    source = called_source(source, task, 2)
    if kind in PACKED:
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
