"""Stable Diffusion end to end: calibrate, export, OpenVINO in the real pipeline, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising import seeded_generators
from accuquant.export import export_pipeline
from accuquant.pipelines import Source, load_source
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.simulate import simulate
from accuquant.task import Task
from accuquant.verification.thresholds import Thresholds
from accuquant.verification.verify import verify

PROMPTS = ("a cat", "two dogs", "a boat at sea")
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=2, observer="minmax",
    rounding="nearest",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    source: Source
    recipe: Recipe
    folder: Path


@pytest.fixture(scope="module")
def exported(tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source = load_source(tiny_text_pipeline("sd"))
    folder = tmp_path_factory.mktemp("exported")
    recipe = calibrate(
        source, SETTINGS, output=folder / "recipe.safetensors", task=Task(prompts=PROMPTS, guidance_scale=4.0)
    )
    export_pipeline(source, recipe, folder / "out")
    return Exported(source, recipe, folder / "out")


@pytest.fixture
def pipe(exported: Exported) -> Any:
    """Return the pipeline as a user's script opens it: three lines, of which the second is ours."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(exported.source.folder)
    pipe.unet = EngineUNet.from_pretrained(exported.folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe: Any, prompts: list[str], **arguments: Any) -> npt.NDArray[np.float32]:
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "np"}
    generators = seeded_generators(range(3, 3 + len(prompts) * arguments.get("num_images_per_prompt", 1)))
    images: npt.NDArray[np.float32] = pipe(prompts, generator=generators, **(options | arguments)).images
    return images


def psnr(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(-10 * np.log10(np.square(a.astype(np.float64) - b).mean()))


def test_the_recipe_knows_what_it_was_calibrated_for(exported: Exported) -> None:
    calibration = exported.recipe.calibration
    assert calibration["guidance"]["kind"] == "classifier-free"
    assert calibration["guidance"]["scale"] == 4.0
    assert calibration["task"]["prompts"]["count"] == 3
    assert any("attn2.to_k" in name for name in exported.recipe.layers)
    again = Recipe.load(exported.folder / "recipe.safetensors")
    assert again.calibration["task"] == calibration["task"]


def test_the_engine_in_the_pipeline_makes_the_images_of_the_simulation(exported: Exported, pipe: Any) -> None:
    engine = images_of(pipe, ["a cat", "a red bird"])
    pipe.unet = exported.source.network
    float_images = images_of(pipe, ["a cat", "a red bird"])
    pipe.unet = simulate(exported.source.network, exported.recipe)
    simulated = images_of(pipe, ["a cat", "a red bird"])
    assert engine.shape == (2, 16, 16, 3)
    assert psnr(engine, simulated) > 45
    assert psnr(engine, simulated) > psnr(engine, float_images) > 20


def test_several_images_a_prompt_are_those_of_the_float_pipeline(exported: Exported, pipe: Any) -> None:
    engine = images_of(pipe, ["a cat"], num_images_per_prompt=3)
    pipe.unet = exported.source.network
    assert psnr(engine, images_of(pipe, ["a cat"], num_images_per_prompt=3)) > 20
    assert engine.shape == (3, 16, 16, 3)


def test_callbacks_see_and_change_the_latents(pipe: Any) -> None:
    seen: list[tuple[int, float]] = []

    def keep(_pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    images = images_of(pipe, ["a cat"], callback_on_step_end=keep, output_type="latent")
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]  # PNDM takes five calls for four steps
    assert images.shape == (1, 4, 8, 8)


def test_another_dtype_and_model_offload_keep_working(pipe: Any) -> None:
    plain = images_of(pipe, ["a cat"])
    pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_array_equal(images_of(pipe, ["a cat"]), plain)
    pipe.remove_all_hooks()
    pipe.to(torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    assert psnr(images_of(pipe, ["a cat"]), plain) > 20


def test_image_to_image_from_the_same_components(exported: Exported, pipe: Any) -> None:
    picture = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)

    def run(text_pipe: Any) -> npt.NDArray[np.float32]:
        image_pipe = diffusers.AutoPipelineForImage2Image.from_pipe(text_pipe)
        image_pipe.set_progress_bar_config(disable=True)
        assert type(image_pipe).__name__ == "StableDiffusionImg2ImgPipeline"
        assert image_pipe.unet is text_pipe.unet
        return images_of(image_pipe, ["a cat"], image=picture, strength=0.8)

    engine = run(pipe)
    pipe.unet = exported.source.network
    assert psnr(engine, run(pipe)) > 20


def test_verify_compares_the_decoded_images(exported: Exported) -> None:
    report = verify(
        exported.folder, exported.source, task=Task(prompts=("a tree",)), num_images=3, batch_size=2, steps=4,
        features="none", layers=True,
        thresholds=Thresholds(min_psnr=20.0, min_lowering_psnr=45.0, max_fid=None),
    )  # fmt: skip
    assert report.passed, report.verdict
    assert report.model["image_shape"] == [3, 16, 16]
    assert len(report.fidelity.psnr) == 3
    assert report.notes == ()
    other = verify(
        exported.folder, exported.source, task=Task(prompts=("a tree",), guidance_scale=2.0), num_images=1,
        steps=4, features="none", thresholds=Thresholds(max_fid=None),
    )  # fmt: skip
    assert any("scale: 4.0 -> 2.0" in note for note in other.notes)
