"""`accuquant.sample`: which loop takes a folder, and what neither has a use for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accuquant.errors import UsageError
from accuquant.pipelines.task import Task
from accuquant.runtime.sample import sample_images
from accuquant.sample_folder import sample

LATENT = "StableDiffusionPipeline"


def test_a_pixel_pipeline_is_sampled_by_the_numpy_loop(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    images = sample(folder, num_images=3, steps=4, seed=7)
    assert images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images, sample_images(folder, num_images=3, steps=4, seed=7))


def test_class_labels_start_again_where_there_are_fewer_than_images(make_folder: Callable[..., Path]) -> None:
    unet = {"_class_name": "UNet2DModel", "num_class_embeds": 4, "sample_size": 8}
    folder = make_folder(labels=True, unet=unet, pipeline="DDPMPipeline")
    images = sample(folder, num_images=3, steps=4, class_labels=(1, 2))
    expected = sample_images(folder, num_images=3, steps=4, class_labels=(1, 2, 1))
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(
    ("task", "choices", "named"),
    [
        (Task(prompts=("a boat",)), {}, "--prompts"),
        (None, {"loras": ("style.safetensors",)}, "--lora"),
        (Task(guidance_scale=2.0), {"pipeline": "./sd"}, "--guidance-scale, --pipeline"),
        (None, {"device": "cuda"}, "--device"),
        (None, {"device": "nonsense", "tf32": True}, "--device, --tf32"),
    ],
)
def test_a_pixel_pipeline_refuses_what_it_has_no_use_for(
    make_folder: Callable[..., Path], task: Task | None, choices: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{named}: got a choice, .*starts from seeds alone"):
        sample(make_folder(), task, **choices)


def test_class_labels_are_refused_where_diffusers_runs_the_pipeline(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--class-labels: got a choice, expected none"):
        sample(make_folder(pipeline=LATENT), class_labels=(1,))


def test_a_latent_pipeline_says_that_it_needs_torch(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"pipeline {LATENT}: got an environment without torch .*calibrate"):
        sample(make_folder(pipeline=LATENT))
