"""What pipelines are called with, where they differ in what a size and an image mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.task import Task

PROMPTS = ("a cat", "two dogs")


def called(name: str, task: Task, indices: range) -> dict[str, Any]:
    """Return the arguments for a pipeline of which only the class is looked at."""
    return call_arguments(object.__new__(getattr(diffusers, name)), task, indices, 4)


def test_flux_kontext_makes_the_size_that_is_asked_for() -> None:
    given = called("FluxKontextPipeline", Task(prompts=PROMPTS, image_size=(16, 24)), range(2))
    assert given == {
        "num_inference_steps": 4, "width": 16, "height": 24, "max_area": 16 * 24, "_auto_resize": False,
        "prompt": list(PROMPTS), "output_type": "latent",
    }  # fmt: skip
    assert "max_area" not in called("FluxKontextPipeline", Task(prompts=PROMPTS), range(2))


def test_an_image_of_flux_kontext_belongs_to_one_prompt_and_those_of_flux_2_to_all(
    picture_folder: Path,
) -> None:
    images = Task.read(images=picture_folder / "images").images
    assert len(images) > 1
    task = Task(prompts=PROMPTS, images=images, image_size=16)
    assert len(called("FluxKontextPipeline", task, range(1))["image"]) == 1
    assert len(called("Flux2Pipeline", task, range(1))["image"]) == len(images)
    assert "image" not in called("Flux2KleinPipeline", Task(prompts=PROMPTS, image_size=16), range(1))
