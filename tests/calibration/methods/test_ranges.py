"""Ranges of one set over all steps, against numpy on what diffusers' own loop shows the layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

LAYER = "down_blocks.0.resnets.0.conv1"


def settings_of(method: str) -> CalibrationSettings:
    return CalibrationSettings.preset(
        "balanced", method=method, steps=4, num_trajectories=4, batch_size=2, affine=False, seed=5
    )


@pytest.fixture(scope="module")
def inputs(tiny_source: Source) -> np.ndarray:
    """What the layer sees while diffusers' scheduler samples the four seeds."""
    import copy

    seen: list[np.ndarray] = []
    scheduler, network = copy.deepcopy(tiny_source.scheduler), tiny_source.network
    scheduler.set_timesteps(4)
    layer = dict(network.named_modules())[LAYER]
    hook = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].numpy().copy()))
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5 + k)) for k in range(4)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    hook.remove()
    return np.concatenate([values.ravel() for values in seen])


@pytest.fixture(scope="module")
def recipe(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recipe]:
    folder = tmp_path_factory.mktemp("ranges")

    def make(method: str) -> Recipe:
        path = folder / f"{method}.safetensors"
        if not path.is_file():
            calibrate(tiny_source, settings_of(method), output=path)
        return Recipe.load(path)

    return make


def test_minmax_clips_nothing(recipe: Callable[[str], Recipe], inputs: np.ndarray) -> None:
    found = recipe("minmax")
    assert len(found.groups) == 1
    wanted = max(inputs.max() / 127, -inputs.min() / 128)
    assert float(found.layers[LAYER].activation_scale[0]) == pytest.approx(wanted, rel=1e-5)
    assert all(layer.weight_levels is None for layer in found.layers.values())


def test_percentile_clips_a_ten_thousandth_at_each_end(
    recipe: Callable[[str], Recipe], inputs: np.ndarray
) -> None:
    ends = [inputs.min(), inputs.max()]
    low, high = np.percentile([*inputs, *ends], (0.01, 99.99))
    found = float(recipe("percentile").layers[LAYER].activation_scale[0])
    assert found == pytest.approx(max(high / 127, -low / 128), rel=1e-4)


def test_mse_errs_least_of_all_scales(recipe: Callable[[str], Recipe], inputs: np.ndarray) -> None:
    def error(scale: float) -> float:
        return float(np.square(np.clip(np.rint(inputs / scale), -128, 127) * scale - inputs).mean())

    found = float(recipe("mse").layers[LAYER].activation_scale[0])
    limit = float(np.abs(inputs).max()) / 127
    best = min(error(limit * share) for share in np.linspace(0.2, 1.1, 200))
    assert error(found) == pytest.approx(best, rel=0.05)


def test_the_recipe_records_the_method_and_what_it_looked_at(recipe: Callable[[str], Recipe]) -> None:
    found = recipe("minmax").calibration
    assert found["settings"]["method"] == "minmax"
    assert found["method_facts"] == {"calls": 8}
    assert "rounding" not in found["settings"]


def test_layers_that_read_one_tensor_share_their_scale(recipe: Callable[[str], Recipe]) -> None:
    keys = {
        recipe("mse").layers[f"down_blocks.0.attentions.0.{name}"].activation_key
        for name in ("to_q", "to_k", "to_v")
    }
    assert len(keys) == 1
