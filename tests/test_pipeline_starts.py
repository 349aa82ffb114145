"""Every supported pipeline: its own run against our loop from its start, latent by latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from accuquant.calibration.trajectory import record_from
from accuquant.denoising import seeded_generators
from accuquant.families import call_arguments
from accuquant.pipeline_starts import open_pipeline, open_starter
from accuquant.pipelines import Source, load_source
from accuquant.task import Task

PROMPTS = ("a cat", "two dogs in a boat", "bird")
STEPS = 5
#: case -> pipeline of the fixture, what the task has beside prompts, scheduler in place of the saved one
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "text": ("sd", {}, None),
    "text-negative-prompt": ("sd", {"negative_prompt": "blurred", "guidance_scale": 3.0}, None),
    "text-without-guidance": ("sd", {"guidance_scale": 1.0}, None),
    "text-rescaled": ("sd", {"guidance_rescale": 0.7}, None),
    "text-larger": ("sd", {"image_size": 24}, None),
    "text-dpm": ("sd", {}, "DPMSolverMultistepScheduler"),
    "velocity": ("sd-v", {}, None),
    "velocity-euler": ("sd-v", {}, "EulerDiscreteScheduler"),
    "image": ("sd", {"images": True, "strength": 0.6}, None),
    "image-ddim": ("sd", {"images": True, "strength": 0.8}, "DDIMScheduler"),
    "image-heun": ("sd", {"images": True, "strength": 0.6}, "HeunDiscreteScheduler"),
    "image-unipc": ("sd", {"images": True, "strength": 0.6}, "UniPCMultistepScheduler"),
    "inpaint": ("inpaint", {"images": True, "masks": True}, None),
    "inpaint-euler-ancestral": (
        "inpaint",
        {"images": True, "masks": True, "strength": 0.7},
        "EulerAncestralDiscreteScheduler",
    ),
    "edit": ("pix2pix", {"images": True}, None),
    "edit-image-scale": ("pix2pix", {"images": True, "image_guidance_scale": 2.0}, "DDIMScheduler"),
    "lcm": ("lcm", {"guidance_scale": 4.0}, None),
    "xl": ("sdxl", {}, None),
    "xl-negative-prompt": ("sdxl", {"negative_prompt": "blurred"}, None),
    "xl-image": ("sdxl", {"images": True, "strength": 0.5}, None),
    "xl-image-dpm": ("sdxl", {"images": True, "strength": 0.5}, "DPMSolverMultistepScheduler"),
}


@pytest.fixture
def opened(
    tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> Callable[[str], tuple[Source, Task]]:
    def open_case(name: str) -> tuple[Source, Task]:
        kind, choices, scheduler = CASES[name]
        source = load_source(tiny_text_pipeline(kind))
        if scheduler is not None:
            cls = getattr(diffusers, scheduler)
            changes = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
            other = cls.from_config(source.scheduler.config, **changes)
            source = dataclasses.replace(source, scheduler=other)
        given = {key: picture_folder / key if value is True else value for key, value in choices.items()}
        prompts = Task(prompts=PROMPTS, **{k: v for k, v in given.items() if not isinstance(v, Path)})
        pictures = Task.read(**{k: v for k, v in given.items() if isinstance(v, Path)})
        return source, Task(**{**vars(prompts), "images": pictures.images, "masks": pictures.masks})

    return open_case


def pipeline_run(source: Source, task: Task, members: range, seed: int) -> tuple[list[Tensor], list[float]]:
    """Run the real pipeline to its end; return the latents that its scheduler gave, and the timesteps."""
    pipe = open_pipeline(source, task)
    seen: list[Tensor] = []
    timesteps: list[float] = []

    def keep(_pipe: Any, _step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        timesteps.append(float(timestep))
        return {}

    arguments = call_arguments(pipe, task, members, STEPS)
    generators = seeded_generators([seed + k for k in members])
    pipe(**arguments, generator=generators, callback_on_step_end=keep)
    return seen, timesteps


@pytest.mark.parametrize("name", CASES)
def test_our_loop_is_the_pipelines_own_latent_by_latent(
    name: str, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened(name)
    starter = open_starter(source, task, steps=STEPS)
    starts = starter.starts(3, 2, seed=11)
    assert [len(start) for start in starts] == [2, 1]
    ours = record_from(source.network, starter.process, starts)
    for batch, members in zip(ours, (range(0, 2), range(2, 3)), strict=True):
        theirs, timesteps = pipeline_run(source, task, members, 11)
        assert starter.process.timesteps == timesteps
        assert len(batch.latents) == len(theirs) + 1
        for after, expected in zip(batch.latents[1:], theirs, strict=True):
            torch.testing.assert_close(after, expected, rtol=0, atol=0)
