"""A text-guided pipeline on another device: calibrate, verify and the drop-in, on a pretended one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from pretend_device import pretend_device
from torch.utils._python_dispatch import _disable_current_modes

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising.process import seeded_generators
from accuquant.export import write_pipeline
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.verification import Thresholds, verify

TASK = Task(prompts=("a cat", "two dogs"), guidance_scale=4.0)
SETTINGS = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=2, batch_size=2, iterations=0, shared_iterations=0,
    observer="minmax", weight_bits=7, rounding="nearest", refine=False,
)  # fmt: skip
NO_LIMITS = Thresholds(min_psnr=None, max_fid=None)


@contextmanager
def loading_for_real() -> Iterator[None]:
    """Load pipelines outside of the pretence: accelerate loads by way of the real "meta" device."""
    with pytest.MonkeyPatch.context() as patch:
        for owner in (diffusers.DiffusionPipeline, diffusers.ModelMixin):
            patch.setattr(owner, "from_pretrained", classmethod(_outside(owner.from_pretrained.__func__)))
        yield


def _outside(real: Callable[..., Any]) -> Callable[..., Any]:
    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return real(cls, *args, **kwargs)

    return load


@pytest.fixture(scope="module")
def folder(tiny_text_pipeline: Callable[[str], Path]) -> Path:
    return tiny_text_pipeline("sd")


@pytest.fixture(scope="module")
def here(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The recipe that the CPU makes of the pipeline, and its export."""
    work = tmp_path_factory.mktemp("here")
    source = load_source(folder)
    recipe = calibrate(source, SETTINGS, output=work / "recipe.safetensors", task=TASK)
    write_pipeline(source, recipe, work / "out")
    return recipe, work / "out"


def test_text_encoder_and_network_calibrate_on_the_device(
    folder: Path, here: tuple[Recipe, Path], tmp_path: Path
) -> None:
    source = load_source(folder)
    with pretend_device() as device, loading_for_real():
        source = source.to(device)
        there = calibrate(source, SETTINGS, output=tmp_path / "there.safetensors", task=TASK)
    for name, layer in here[0].layers.items():
        other = there.layers[name]
        np.testing.assert_allclose(other.activation_scale, layer.activation_scale, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(other.weight_scale, layer.weight_scale, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_verify_runs_network_and_decoder_on_the_device(folder: Path, here: tuple[Recipe, Path]) -> None:
    reports = []
    options: dict[str, Any] = {
        "num_images": 2,
        "seed": 50,
        "layers": True,
        "thresholds": NO_LIMITS,
        "task": TASK,
    }
    source = load_source(folder)
    reports.append(verify(here[1], source, **options))
    with pretend_device() as device, loading_for_real():
        reports.append(verify(here[1], source.to(device), **options))
    cpu, there = reports
    np.testing.assert_allclose(there.fidelity.psnr, cpu.fidelity.psnr, rtol=1e-3)
    np.testing.assert_allclose(there.lowering.latent_mse, cpu.lowering.latent_mse, rtol=0.05)


def test_the_drop_in_serves_a_pipeline_on_the_device(folder: Path, here: tuple[Recipe, Path]) -> None:
    def images(pipe: diffusers.DiffusionPipeline) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "np"}
        return np.asarray(pipe("a boat", generator=seeded_generators([3]), **options).images)

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.unet = EngineUNet.from_pretrained(here[1])
    wanted = images(pipe)
    with pretend_device() as device:
        pipe.to(device)
        got = images(pipe)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
