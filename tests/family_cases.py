"""One case for each pipeline and task: what it is sampled with, and its export."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.export import write_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe

# 7-bit weights: with 8, OpenVINO saturates on a processor without VNNI, and is not what the simulation is
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=1, shared_iterations=1,
    observer="minmax",
    rounding="nearest", weight_bits=7,
)  # fmt: skip
#: pipeline -> what its task has: prompts, images, masks, other choices
CASES: dict[str, dict[str, Any]] = {
    "sd-v": {"prompts": True},
    "sd-heun": {"prompts": True},
    "sd-unipc": {"prompts": True},
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
    "sd35": {"prompts": True},
    "aura-flow": {"prompts": True, "image_size": 16},
    "sana": {"prompts": True, "image_size": 32},
    "chroma": {"prompts": True, "image_size": 16},
    "control": {"prompts": True, "control_images": 1},
    "control-two": {"prompts": True, "control_images": 2, "control_scale": (0.5, 1.0)},
    "control-image": {"prompts": True, "images": True, "strength": 0.8, "control_images": 1},
    "control-sdxl": {"prompts": True, "control_images": 1},
    "adapter": {"prompts": True, "control_images": 1},
    "ip-adapter": {"prompts": True, "ip_adapter_images": 1},
    "lumina": {"prompts": True, "image_size": (64, 96)},  # its pipeline divides by 8
    "flux-fill": {"prompts": True, "images": True, "masks": True, "image_size": (16, 24)},
    "flux-kontext": {"prompts": True, "images": True, "image_size": (16, 24)},
    "flux2": {"prompts": True, "image_size": 16},
    "flux2-klein": {"prompts": True, "image_size": 16},
    "qwen": {"prompts": True, "image_size": (16, 24)},
    "qwen-true": {"prompts": True, "image_size": 16, "negative_prompt": "blurred", "true_cfg_scale": 4.0},
    "zimage": {"prompts": True, "image_size": (16, 24), "negative_prompt": "blurred"},
    "hunyuan-dit": {"prompts": True, "image_size": 64},
}


@dataclass(frozen=True)
class Exported:
    source: Source
    task: Task
    recipe: Recipe
    folder: Path


def export_case(kind: str, pipeline: Path, pictures: Path, folder: Path) -> Exported:
    """Calibrate and export a case into `folder`."""
    adapters = [str(file) for file in pipeline.parent.glob("ip_adapter.safetensors")]
    source, task = load_source(pipeline, ip_adapters=adapters), make_task(CASES[kind], pictures)
    recipe = calibrate(source, SETTINGS, output=folder / "recipe.safetensors", task=task)
    write_pipeline(source, recipe, folder / "out")
    return Exported(source, task, recipe, folder / "out")


def saved_pipeline(kind: str) -> str:
    """Return the name in `tiny_pipelines` of the pipeline that a case starts from."""
    return re.sub("-(image|paste|true)$", "", kind)


def make_task(choices: dict[str, Any], pictures: Path) -> Task:
    """Return the task of a case; `pictures` has the folders images/ and masks/."""
    several = ("control_images", "ip_adapter_images")
    numbers = {k: v for k, v in choices.items() if v is not True and k not in several}
    folders: dict[str, Any] = {k: pictures / k for k in ("images", "masks") if k in choices}
    folders |= {k: [pictures / "images"] * choices.get(k, 0) for k in several}
    read = Task.read(**folders)
    prompts = ("a cat", "two dogs") if "prompts" in choices else ()
    return replace(read, prompts=prompts, **numbers)
