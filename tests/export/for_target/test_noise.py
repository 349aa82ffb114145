"""The noise that shared scales add."""

from __future__ import annotations

import numpy as np
import pytest

from accuquant.export.for_target.noise import added_noise_db
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe


def recipe(*scales: tuple[float, float]) -> Recipe:
    layers = {}
    for k, pair in enumerate(scales):
        name = f"layer{k}"
        layers[name] = LayerQParams(
            name, "linear", (2, 2), "f" * 64, np.ones(2, np.float32), np.array(pair, np.float32)
        )
    sample = TensorSpec("sample", ("batch", 1, 8, 8))
    signature = Signature("UNet2DModel", sample, TensorSpec("timestep", (1,)), (), sample, {"batch": 1})
    return Recipe(StepGroups((1000.0, 500.0, 0.0)), layers, signature, {}, "ab" * 32)


def test_uniform_rounding_noise_grows_by_the_estimate() -> None:
    """Against noise that is measured: uniform values, rounded to both grids."""
    before, after = recipe((0.05, 0.025), (0.03, 0.03)), recipe((0.05, 0.05), (0.03, 0.03))
    values = np.random.default_rng(0).uniform(-3, 3, 400_000)

    def power(step: float) -> float:
        return float(((values / step).round() * step - values).var())

    # relative to each layer's own noise before, as the estimate weighs layers and groups alike
    grown = np.mean([power(0.05) / power(0.05), power(0.05) / power(0.025), 1, 1])
    assert added_noise_db(before, after) == pytest.approx(10 * np.log10(grown), abs=0.02)


def test_the_same_scales_add_none() -> None:
    assert added_noise_db(recipe((0.05, 0.02)), recipe((0.05, 0.02))) == 0
