"""Optimum's own pipelines load a whole exported folder; skipped where they are not installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising.process import seeded_generators
from accuquant.export import write_pipeline
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Optimum's warnings are not ours
# 7-bit weights: with 8, OpenVINO saturates on a processor without VNNI, and is not what the simulation is
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=1, shared_iterations=1,
    observer="minmax",
    rounding="nearest", weight_bits=7,
)  # fmt: skip
PROMPTS = ["a cat", "a red bird"]
Images = npt.NDArray[np.float32]


#: Engine -> (module, what to install, prefix of its classes, options of from_pretrained). On a processor with
#: bfloat16 OpenVINO computes in it by default.
ENGINES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "onnxruntime": ("optimum.onnxruntime", "optimum-onnx", "ORT", {}),
    "openvino": (
        "optimum.intel", "optimum-intel", "OV",
        {"from_onnx": True, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}},
    ),
}  # fmt: skip


@pytest.fixture(params=ENGINES)
def load(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that loads a folder with one of Optimum's pipelines; skip before anything is made."""
    module, package, prefix, options = ENGINES[request.param]
    optimum = pytest.importorskip(module, reason=f"{package} is not installed")

    def load_pipeline(folder: Path, name: str = "DiffusionPipeline") -> Any:
        return getattr(optimum, prefix + name).from_pretrained(folder, **options)

    return load_pipeline


@dataclass(frozen=True)
class Whole:
    """A whole exported pipeline, the float one, and the float one with the simulated network."""

    folder: Path
    float_pipe: Any
    simulated: Any


@pytest.fixture(scope="module")
def export_whole(
    tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Whole]:
    made: dict[str, Whole] = {}

    def make(kind: str) -> Whole:
        if kind in made:
            return made[kind]
        source, folder = load_source(tiny_text_pipeline(kind)), tmp_path_factory.mktemp(kind)
        size = 16 if kind == "flux" else None
        task = Task(prompts=("a cat", "two dogs"), guidance_scale=4.0, image_size=size)
        recipe = calibrate(source, SETTINGS, output=folder / "recipe.safetensors", task=task)
        write_pipeline(source, recipe, folder / "out", whole_pipeline=True)
        pipes = [diffusers.DiffusionPipeline.from_pretrained(source.folder) for _ in range(2)]
        setattr(pipes[1], source.component, simulate(source.network, recipe))
        made[kind] = Whole(folder / "out", *pipes)
        return made[kind]

    return make


def images_of(pipe: Any, **arguments: Any) -> Images:
    pipe.set_progress_bar_config(disable=True)
    images: Images = pipe(
        PROMPTS, num_inference_steps=4, guidance_scale=4.0, output_type="np",
        generator=seeded_generators([3, 4]), **arguments,
    ).images  # fmt: skip
    return images


def psnr(a: Images, b: Images) -> float:
    return float(-10 * np.log10(np.square(a.astype(np.float64) - b).mean()))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lcm", "sd3", "flux"])
def test_the_pipeline_makes_the_images_of_the_simulation(
    kind: str, load: Callable[..., Any], export_whole: Callable[[str], Whole]
) -> None:
    whole = export_whole(kind)
    size = {"height": 16, "width": 16} if kind == "flux" else {}
    images = images_of(load(whole.folder), **size)
    simulated, unquantized = images_of(whole.simulated, **size), images_of(whole.float_pipe, **size)
    assert images.shape == (2, 16, 16, 3)
    assert psnr(images, simulated) > 60
    assert psnr(images, simulated) > psnr(images, unquantized) > 40


def test_image_to_image_loads_the_same_folder(
    load: Callable[..., Any], export_whole: Callable[[str], Whole]
) -> None:
    whole = export_whole("sd")
    pictures = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    pipe = load(whole.folder, "StableDiffusionImg2ImgPipeline")
    images = images_of(pipe, image=pictures, strength=0.8)
    simulated = diffusers.AutoPipelineForImage2Image.from_pipe(whole.simulated)
    assert psnr(images, images_of(simulated, image=pictures, strength=0.8)) > 60
