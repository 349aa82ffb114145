"""TFMQ-DM and PCR give every step ranges of its own: running means, or what the steps before lead to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.methods.tfmq import is_temporal, running_mean
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe
from accuquant.scales.observer import norm_scale

LAYER = "down_blocks.0.resnets.0.conv1"
STEPS = 3


@pytest.fixture(scope="module")
def recipe(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    folder = tmp_path_factory.mktemp("steps")

    def make(method: str, **changes: Any) -> Recipe:
        given = {"steps": STEPS, "num_trajectories": 2, "batch_size": 2, "affine": False, "iterations": 0}
        settings = CalibrationSettings.preset("balanced", method=method, **(given | changes))
        return calibrate(tiny_source, settings, output=folder / "recipe.safetensors")

    return make


def with_rounded_weights(network: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of the float network whose weights are rounded to the recipe's levels, by numpy."""
    rounded = copy.deepcopy(network)
    modules = dict(rounded.named_modules())
    for name, layer in recipe.layers.items():
        assert layer.weight_levels is not None
        scale = layer.weight_scale.reshape(-1, *[1] * (len(layer.weight_shape) - 1))
        modules[name].get_parameter("weight").data = torch.from_numpy(layer.weight_levels * scale)
    return rounded


def seen_by(network: nn.Module, x: Tensor, t: Tensor) -> np.ndarray:
    """What the layer gets when `network` is called."""
    seen: list[np.ndarray] = []
    hook = dict(network.named_modules())[LAYER].register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].numpy().copy())
    )
    network(x, t)
    hook.remove()
    return seen[0]


@torch.no_grad()
def walk(source: Source, network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Latents and timestep before each step of diffusers' own loop around `network`."""
    scheduler = copy.deepcopy(source.scheduler)
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(2)])
    places = []
    for t in scheduler.timesteps:
        places.append((x, t))
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return places


def test_a_running_mean_begins_with_the_first_value() -> None:
    assert running_mean(np.array([4.0], np.float32)) == 4
    assert running_mean(np.array([4.0, 0.0, 2.0], np.float32)) == pytest.approx((4 * 0.95) * 0.95 + 0.05 * 2)


def test_tfmq_takes_the_range_of_each_step_in_the_network_with_rounded_weights(
    recipe: Callable[..., Recipe], tiny_source: Source
) -> None:
    found = recipe("tfmq")
    assert len(found.groups) == STEPS
    rounded = with_rounded_weights(tiny_source.network, found)
    for step, (x, t) in enumerate(walk(tiny_source, tiny_source.network)):
        with torch.no_grad():
            values = seen_by(rounded, x, t)
        wanted = max(values.max() / 127, -values.min() / 128)
        assert float(found.layers[LAYER].activation_scale[step]) == pytest.approx(wanted, rel=1e-3)


def test_tfmq_reconstructs_temporal_layers_alone(recipe: Callable[..., Recipe]) -> None:
    found = recipe("tfmq", include=("*time_emb_proj",), weight_bits=4, iterations=8)
    temporal = [name for name in found.layers if name.endswith("time_emb_proj")]
    facts = found.calibration["method_facts"]
    assert facts["temporal_layers"] == len(temporal) > 0
    assert set(temporal) <= facts["block_errors"].keys()
    assert "down_blocks.0.resnets.0" in facts["block_errors"]
    assert is_temporal("time_embedding.linear_1")
    assert not is_temporal(LAYER)


def test_pcr_calibrates_each_step_where_the_quantized_steps_before_it_lead(
    recipe: Callable[..., Recipe], tiny_source: Source
) -> None:
    found = recipe("pcr", activation_bits=4)
    rounded = with_rounded_weights(tiny_source.network, found)
    quantized = simulate(tiny_source.network, found)
    for step, (x, t) in enumerate(walk(tiny_source, quantized)):
        with torch.no_grad():
            values = seen_by(rounded, x, t)
        seen = np.concatenate([values.ravel(), [values.min(), values.max()]])  # extremes count twice
        found_scale = float(found.layers[LAYER].activation_scale[step])
        assert found_scale == pytest.approx(norm_scale(seen, 4), rel=1e-3)
    # and not where the float network would have led
    x, t = walk(tiny_source, tiny_source.network)[-1]
    assert float((x - walk(tiny_source, quantized)[-1][0]).abs().mean()) > 1e-3


def test_pcr_takes_groups_of_several_steps(recipe: Callable[..., Recipe]) -> None:
    found = recipe("pcr", group_size=2)
    assert len(found.groups) == 2
    assert found.calibration["settings"]["group_size"] == 2
