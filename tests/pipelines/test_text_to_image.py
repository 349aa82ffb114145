"""Stable Diffusion end to end: calibrate, export, OpenVINO in the real pipeline, verify."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from accuquant._util.files import sha256_of_file
from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.cli.main import main
from accuquant.denoising.process import seeded_generators
from accuquant.errors import CalibrationError, SourceError, UsageError
from accuquant.export import write_pipeline
from accuquant.manifest import Manifest
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify

PROMPTS = ("a cat", "two dogs", "a boat at sea")
# 7-bit weights: with 8, OpenVINO saturates on a processor without VNNI, and is not what the simulation is
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=2, shared_iterations=2,
    observer="minmax",
    rounding="nearest", weight_bits=7,
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
    write_pipeline(source, recipe, folder / "out")
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


@pytest.mark.slow
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


class Killed(Silent):
    """Progress of a process that dies when it comes to the second step group."""

    def stage(self, name: str, total: int) -> None:
        if name.startswith("step group 2"):
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "UniPCMultistepScheduler"])
def test_a_killed_calibration_resumes_bit_for_bit(scheduler: str, exported: Exported, tmp_path: Path) -> None:
    """Both schedulers have a history, which the second group starts from."""
    config = exported.source.scheduler.config
    source = dataclasses.replace(exported.source, scheduler=getattr(diffusers, scheduler).from_config(config))
    task, whole, resumed = Task(prompts=PROMPTS), tmp_path / "whole", tmp_path / "resumed"
    calibrate(source, SETTINGS, output=whole, task=task)
    with pytest.raises(KeyboardInterrupt):
        calibrate(source, SETTINGS, output=resumed, task=task, progress=Killed())
    assert not resumed.exists()
    with pytest.raises(CalibrationError, match=r"other settings \(task"):
        calibrate(source, SETTINGS, output=resumed, task=Task(prompts=("another",)))
    calibrate(source, SETTINGS, output=resumed, task=task)
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_verify_compares_the_decoded_images(exported: Exported) -> None:
    report = verify(
        exported.folder, exported.source, task=Task(prompts=("a tree",)), num_images=3, batch_size=2, steps=4,
        features="none", layers=True,
        thresholds=Thresholds(min_psnr=20.0, min_lowering_psnr=45.0, max_fid=None),
    )  # fmt: skip
    assert report.passed, report.verdict
    assert report.model["image_shape"] == [3, 16, 16]
    assert report.settings["calibrated_guidance"] == "classifier-free, scale 4"
    assert len(report.fidelity.psnr) == 3
    assert [note for note in report.notes if not note.startswith("openvino '")] == []
    other = verify(
        exported.folder, exported.source, task=Task(prompts=("a tree",), guidance_scale=2.0), num_images=1,
        steps=4, features="none", thresholds=Thresholds(max_fid=None),
    )  # fmt: skip
    assert any("scale: 4.0 -> 2.0" in note for note in other.notes)


def test_sample_runs_the_pipeline_with_prompts(exported: Exported, tmp_path: Path) -> None:
    prompts = ["--prompt", "a cat", "--prompt", "a red bird"]
    options = [
        "--num-images",
        "3",
        "--seed",
        "3",
        "--batch-size",
        "2",
        "--output-dir",
        str(tmp_path / "images"),
    ]
    assert main(["sample", str(exported.folder), *prompts, *options]) == 0
    images = sample_pipeline(
        exported.folder, Task(prompts=("a cat", "a red bird")), num_images=3, seed=3, batch_size=1
    )
    files = sorted((tmp_path / "images").glob("*.png"))
    assert len(files) == 4  # three images and their grid
    saved = [np.asarray(Image.open(file), np.float64) for file in files]
    for image in images:
        assert min(np.abs(other - 255 * image).mean() for other in saved if other.shape == image.shape) < 1


def test_what_the_pipeline_refuses_while_sampling_is_one_clear_line(exported: Exported) -> None:
    with pytest.raises(UsageError, match=r"pipeline StableDiffusionPipeline: got .*divisible by 8"):
        sample_pipeline(exported.folder, Task(prompts=("a cat",), image_size=10), num_images=1)


def test_an_export_that_names_no_pipeline_asks_for_one(exported: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "out"))
    dataclasses.replace(Manifest.load(folder), source="", num_inference_steps=None).save(folder)
    with pytest.raises(UsageError, match=r"number of steps: got none.*Give --steps"):
        sample_pipeline(folder, Task(prompts=("a cat",)), num_images=1)
    with pytest.raises(UsageError, match=r"--pipeline: got none.*Give --pipeline"):
        sample_pipeline(folder, Task(prompts=("a cat",)), num_images=1, steps=1)


def test_a_prediction_that_no_scheduler_knows_is_refused_before_sampling(
    exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "out"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "hope"}))
    listed = {**Manifest.load(folder).files, "scheduler/scheduler_config.json": sha256_of_file(path)}
    dataclasses.replace(Manifest.load(folder), files=listed).save(folder)
    with pytest.raises(SourceError, match="prediction_type 'hope'"):
        sample_pipeline(folder, Task(prompts=("a cat",)), num_images=1, steps=1)


def test_a_source_that_has_moved_can_be_named(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(exported.folder, folder)
    moved = dataclasses.replace(Manifest.load(folder), source=str(tmp_path / "gone"))
    moved.save(folder)
    message = r"which this was exported from: got no such folder.*--pipeline SOURCE"
    with pytest.raises(SourceError, match=message):
        sample_pipeline(folder, Task(prompts=("a cat",)), num_images=1)


def test_sample_is_what_the_users_script_makes(exported: Exported, pipe: Any) -> None:
    ours = sample_pipeline(exported.folder, Task(prompts=("a cat",)), num_images=1, steps=4, seed=3)
    # each loads the engine anew, and may measure another form of it to be the fastest: last bits, or a level
    np.testing.assert_allclose(ours, images_of(pipe, ["a cat"]), atol=2e-3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ([], "StableDiffusionPipeline: got no prompts"),
        (["--prompt", "a", "--strength", "0.5"], "--strength: got a choice"),
        (["--prompt", "a", "--pipeline", "./nowhere"], "pipeline './nowhere': got no such folder"),
    ],
)
def test_a_sample_that_cannot_be_made_is_one_clear_line(
    option: list[str], message: str, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "images"
    assert main(["sample", str(exported.folder), "--output-dir", str(target), *option]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "got" in line]
    assert message in line
    assert not target.exists()


def test_prompts_beside_a_recipe_are_refused(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = exported.folder / "recipe.safetensors"
    assert (
        main(
            ["export", str(exported.source.folder), "--recipe", str(recipe), "-o", "nowhere", "--prompt", "a"]
        )
        != 0
    )
    assert "--prompt: got a choice for a calibration that does not run" in capsys.readouterr().err


def test_an_export_that_calibrates_first_asks_for_prompts(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported.source.folder), "-o", str(tmp_path / "out")]) != 0
    assert "got no prompts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sample_without_torch_says_what_to_install(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["sample", str(exported.folder), "--prompt", "a cat"]) == 2
    assert "pip install 'accuquant[calibrate,text]'" in capsys.readouterr().err
