"""Every pipeline class end to end: calibrate, export, and the engine inside the real pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising.process import seeded_generators
from accuquant.export import export_pipeline
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task
from accuquant.sample_pipeline import sample_pipeline
from accuquant.simulate import simulate
from accuquant.verification.thresholds import Thresholds
from accuquant.verification.verify import verify

# 7-bit weights: with 8, OpenVINO saturates on a processor without VNNI, and is not what the simulation is
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=1, shared_iterations=1,
    observer="minmax",
    rounding="nearest", weight_bits=7,
)  # fmt: skip
#: pipeline -> what its task has: prompts, images, masks, other choices
CASES: dict[str, dict[str, Any]] = {
    "sd-v": {"prompts": True},
    "sd": {"prompts": True, "images": True, "strength": 0.8},
    "inpaint": {"prompts": True, "images": True, "masks": True},
    "sd-paste": {"prompts": True, "images": True, "masks": True},
    "sdxl-paste": {"prompts": True, "images": True, "masks": True, "strength": 0.8},
    "pix2pix": {"prompts": True, "images": True},
    "variation": {"images": True},
    "sdxl-pix2pix": {"prompts": True, "images": True},
    "lcm-image": {"prompts": True, "images": True, "guidance_scale": 4.0, "strength": 0.8},
    "upscale": {"prompts": True, "images": True},
    "lcm": {"prompts": True, "guidance_scale": 4.0},
    "sdxl": {"prompts": True},
    "sdxl-image": {"prompts": True, "images": True, "strength": 0.8},
    "sdxl-inpaint": {"prompts": True, "images": True, "masks": True},
    "ldm": {},
    "ldm-text": {"prompts": True, "guidance_scale": 4.0, "image_size": 64},  # its pipeline divides by 8
    "super-resolution": {"images": True},
    "dit": {},
    "pixart": {"prompts": True},
    "pixart-alpha": {"prompts": True, "negative_prompt": "blurred"},
    "sd3": {"prompts": True},
    "sd3-image": {"prompts": True, "images": True, "strength": 0.8},
    "sd3-wide-paste": {"prompts": True, "images": True, "masks": True, "strength": 0.8},
    "flux": {"prompts": True, "image_size": (24, 16)},
    "flux-true": {"prompts": True, "image_size": 16, "negative_prompt": "blurred", "true_cfg_scale": 3.0},
    "flux-image": {"prompts": True, "image_size": 16, "images": True, "strength": 0.8},
    "flux-paste": {"prompts": True, "image_size": (16, 24), "images": True, "masks": True, "strength": 0.8},
}


def make_task(choices: dict[str, Any], pictures: Path) -> Task:
    numbers = {k: v for k, v in choices.items() if v is not True}
    read = Task.read(**{k: pictures / k for k in ("images", "masks") if k in choices})
    prompts = ("a cat", "two dogs") if "prompts" in choices else ()
    return Task(prompts=prompts, images=read.images, masks=read.masks, **numbers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_the_engine_in_the_pipeline_makes_the_images_of_the_simulation(
    kind: str, tiny_text_pipeline: Callable[[str], Path], picture_folder: Path, tmp_path: Path
) -> None:
    saved = re.sub("-(image|paste|true)$", "", kind)
    source, task = load_source(tiny_text_pipeline(saved)), make_task(CASES[kind], picture_folder)
    recipe = calibrate(source, SETTINGS, output=tmp_path / "recipe.safetensors", task=task)
    export_pipeline(source, recipe, tmp_path / "out")
    images = sample_pipeline(tmp_path / "out", task, num_images=3, batch_size=2, seed=9)

    pipe = open_pipeline(source, task)
    setattr(pipe, source.component, simulate(source.network, recipe))
    arguments = call_arguments(pipe, task, range(2), 4) | {"output_type": "np"}
    simulated = pipe(**arguments, generator=seeded_generators([9, 10])).images
    assert images.shape == (3, *simulated.shape[1:])
    error = np.square(images[:2].astype(np.float64) - simulated).mean()
    assert -10 * np.log10(error) > 35
    assert images.std() > 0.01

    # most of Flux's 512 text tokens are padding, all alike: a tie of rounding there counts hundreds of times
    share = 0.01 if kind.startswith("flux") else 0.001
    report = verify(
        tmp_path / "out", source, task=task, num_images=2, steps=4, features="none", layers=True,
        thresholds=Thresholds(min_psnr=15.0, max_fid=None, max_level_share=share),
    )  # fmt: skip
    assert report.passed, report.verdict
    assert report.notes == ()
