"""Folds before AccuQuant's own calibration: exact, in the recipe, and refused where nothing folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import make_inputs, make_network
from torch import nn

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.equalize import check_places
from accuquant.calibration.placement import place
from accuquant.channel_fold import ChannelFold
from accuquant.errors import CalibrationError, RecipeError, UsageError
from accuquant.networks.fold import fold_network, rotate
from accuquant.networks.network import call_directly, count_macs, signature_of, weight_shape
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

VALUES = "down_blocks.0.attentions.0.to_v"
QUICK = CalibrationSettings(
    steps=2, group_size=1, num_trajectories=2, batch_size=2, observer="minmax", refine=False
)  # fmt: skip


def test_a_rotation_is_the_hadamard_matrix_of_each_block() -> None:
    values = np.random.default_rng(0).normal(size=(24, 5))
    two = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    wanted = np.kron(np.eye(3), np.kron(two, np.kron(two, two))) @ values
    np.testing.assert_allclose(rotate(torch.from_numpy(values), 8).numpy(), wanted, atol=1e-12)
    np.testing.assert_array_equal(rotate(torch.from_numpy(values), 1).numpy(), values)


@pytest.mark.parametrize("equalize", ["smoothquant", "rotate"])
def test_an_equalized_network_computes_the_same_and_its_recipe_holds_the_folds(
    tiny_source: Source, equalize: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.safetensors"
    recipe = calibrate(tiny_source, replace(QUICK, equalize=equalize), output=path)
    assert recipe.folds
    assert recipe.calibration["settings"]["equalize"] == equalize
    assert recipe.model_hash == tiny_source.model_hash
    again = Recipe.load(path)
    assert [fold.rotated for fold in again.folds] == [fold.rotated for fold in recipe.folds]
    folded = fold_network(tiny_source.network, again.folds)
    sample, conditioning = make_inputs(signature_of(tiny_source.network))
    with torch.no_grad():
        wanted, found, simulated = (
            call_directly(network, sample, torch.tensor([500.0]), conditioning)
            for network in (tiny_source.network, folded, simulate(tiny_source.network, again))
        )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float((simulated - wanted).square().mean()) < 1e-2 * float(wanted.square().mean())
    assert not torch.equal(
        folded.get_submodule(VALUES).get_parameter("weight"),
        tiny_source.network.get_submodule(VALUES).get_parameter("weight"),
    )


def test_a_spike_in_the_values_is_spread_over_its_head() -> None:
    network = make_network("dit")
    attention = network.get_submodule("transformer_blocks.0.attn1")
    values, out = attention.get_submodule("to_v"), attention.get_submodule("to_out.0")
    assert isinstance(values, nn.Linear)
    with torch.no_grad():
        values.get_parameter("weight")[1] *= 50
        out.get_parameter("weight")[:, 1] /= 50
    name = "transformer_blocks.0.attn1"
    ones = np.ones(values.out_features, np.float32)
    fold = ChannelFold(f"{name}.to_v", (f"{name}.to_out.0",), ones, rotated=4)
    seen: list[torch.Tensor] = []
    sample, conditioning = make_inputs(signature_of(network))
    for each in (network, fold_network(network, [fold])):
        layer = each.get_submodule(f"{name}.to_out.0")
        with layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0])), torch.no_grad():
            call_directly(each, sample, torch.tensor([500.0]), conditioning)
    before, after = (x.abs().amax() / x.square().mean().sqrt() for x in seen)
    assert after < 0.7 * before


def test_a_network_without_attention_is_refused_before_anything_runs() -> None:
    network = make_network("flux")
    placement = place(network, count_macs(network, signature_of(network)))
    for name in ("smoothquant", "rotate"):
        with pytest.raises(CalibrationError, match=f"--equalize {name}"):
            check_places(name, network, placement)


def test_rejects_an_unknown_equalizer_and_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="smoothquant or rotate"):
        CalibrationSettings(equalize="dmq")
    with pytest.raises(UsageError, match="--equalize"):
        CalibrationSettings.preset("balanced", method="minmax", equalize="rotate")


def test_rejects_a_rotation_that_does_not_divide_the_channels_or_goes_into_a_norm() -> None:
    with pytest.raises(RecipeError, match="rotation of 4 channels of 6"):
        ChannelFold("a", ("b",), np.ones(6, np.float32), rotated=4)
    network = make_network("ddpm")
    norm = ChannelFold(
        "down_blocks.0.attentions.0.group_norm",
        (VALUES,),
        np.ones(weight_shape(network.get_submodule(VALUES))[1], np.float32),
        rotated=4,
    )
    with pytest.raises(RecipeError, match="a linear layer, which can be rotated"):
        fold_network(network, [norm])
