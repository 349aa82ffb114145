"""What PTQD takes off a prediction is taken off in the simulation, `sample`, `verify` and EngineUNet."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from torch import Tensor

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.export import write_pipeline
from accuquant.networks.network import call
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.prediction_correction import PredictionCorrection
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.sample import sample_images
from accuquant.verification.verify import verify

STEPS, SEEDS = 4, (20, 21)


@pytest.fixture(scope="module")
def recipe(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """PTQD's, with a correction that is far too large to be overlooked."""
    path = tmp_path_factory.mktemp("ptqd") / "recipe.safetensors"
    settings = CalibrationSettings.preset(
        "balanced", method="ptqd", steps=STEPS, num_trajectories=2, batch_size=2, iterations=0,
        affine=False, weight_bits=7,
    )  # fmt: skip
    made = calibrate(tiny_source, settings, output=path)
    assert made.correction is not None
    assert Recipe.load(path).correction is not None
    strong = PredictionCorrection(
        made.correction.steps,
        np.array([[0.9], [0.8], [0.7], [0.6]], np.float32),
        np.array([[0.3], [-0.2], [0.1], [-0.1]], np.float32),
    )
    return replace(made, correction=strong)


@pytest.fixture(scope="module")
def wanted(tiny_source: Source, recipe: Recipe) -> Tensor:
    """Images of the uncorrected simulation in a loop that corrects it by hand [N, H, W, C]."""
    assert recipe.correction is not None
    network = simulate(tiny_source.network, replace(recipe, correction=None))
    scheduler = copy.deepcopy(tiny_source.scheduler)
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            bias, factor = float(recipe.correction.bias[step, 0]), float(recipe.correction.factor[step, 0])
            x = scheduler.step((call(network, x, t) - bias) * factor, t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def folder(tiny_source: Source, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "out"
    write_pipeline(tiny_source, recipe, path)
    return path


def test_the_simulation_corrects_itself(tiny_source: Source, recipe: Recipe, wanted: Tensor) -> None:
    network = simulate(tiny_source.network, recipe)
    scheduler = copy.deepcopy(tiny_source.scheduler)
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, t)
            torch.testing.assert_close(network(x, t, return_dict=False)[0], output.sample)
            x = scheduler.step(output.sample, t, x).prev_sample
    found = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sample_applies_the_correction(folder: Path, wanted: Tensor, engine: str) -> None:
    images = sample_images(folder, engine=engine, num_images=2, seed=SEEDS[0])
    assert float(np.abs(images - wanted.numpy()).mean()) < 2e-3


@pytest.mark.slow
def test_the_drop_in_applies_the_correction(folder: Path, tiny_pipeline: Path, wanted: Tensor) -> None:
    pipe = DDIMPipeline.from_pretrained(tiny_pipeline, unet=EngineUNet.from_pretrained(folder))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipe(batch_size=2, generator=generators, num_inference_steps=STEPS, output_type="np").images
    assert float(np.abs(images - wanted.numpy()).mean()) < 2e-3


@pytest.mark.slow
def test_verify_finds_engine_and_simulation_alike(folder: Path, tiny_source: Source) -> None:
    report = verify(folder, tiny_source, engine="onnxruntime", num_images=2, batch_size=2, features="none")
    figures = report.to_dict()
    assert figures["lowering"]["summary"]["latent_mse"]["maximum"] < 1e-3
    assert figures["quantization"]["summary"]["latent_mse"]["minimum"] > 0.01  # the correction is a wrong one
