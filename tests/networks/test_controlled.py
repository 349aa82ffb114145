"""A UNet and its control networks as one network, and what each of them takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel
from tiny_pipelines import control_net, text_unet
from torch import Tensor

from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.control_recipe import joined_recipe, part_recipe, parts_of
from accuquant.networks.control_signature import DOWN, MID, part_of_layer, residual_specs
from accuquant.networks.controlled import ControlledNetwork, controlled
from accuquant.networks.image_sides import check_sample
from accuquant.networks.network import call, float_weight, quantizable_layers, signature_of
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.scales.placement_patterns import stays_float

_TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(scope="module")
def pair() -> ControlledNetwork:
    nets = MultiControlNetModel([control_net(), control_net(seed=8)])
    return controlled(text_unet(**_TWO_LEVELS), nets)


def inputs(network: ControlledNetwork) -> tuple[Tensor, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    sizes = network.signature.sizes | {"batch": 2, "tokens": 6}
    tensors = {
        spec.name: torch.randn(spec.resolve(sizes), generator=random) for spec in network.signature.inputs
    }
    del tensors["timestep"]
    return tensors.pop("sample"), tensors


def test_the_pair_computes_what_diffusers_computes_of_both(pair: ControlledNetwork) -> None:
    sample, given = inputs(pair)
    given["conditioning_scale"] = torch.tensor([0.5, 2.0])
    words, at = given["encoder_hidden_states"], torch.tensor(300)
    with torch.no_grad():
        down, mid = pair.controlnet(
            sample,
            at,
            words,
            [given["controlnet_cond_0"], given["controlnet_cond_1"]],
            [0.5, 2.0],
            return_dict=False,
        )
        expected = pair.unet(
            sample,
            at,
            words,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        plain = pair.unet(sample, at, words).sample
        found = call(pair, sample, at, given)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, rtol=0.05)


def test_the_residuals_have_the_shapes_of_the_signature(pair: ControlledNetwork) -> None:
    sample, given = inputs(pair)
    with torch.no_grad():
        down, mid = pair.residuals(sample, torch.tensor(300), **given)
    specs = residual_specs(pair.config, DOWN, MID)
    sizes = signature_of(pair.unet).sizes | {"batch": 2}
    assert [tuple(t.shape) for t in (*down, mid)] == [spec.resolve(sizes) for spec in specs]
    assert [spec.name for spec in specs][-1] == "mid_block_additional_residual"


def test_a_unet_takes_its_residuals_by_their_names(pair: ControlledNetwork) -> None:
    sample, given = inputs(pair)
    words, at = given["encoder_hidden_states"], torch.tensor(300)
    with torch.no_grad():
        down, mid = pair.residuals(sample, at, **given)
        named = {f"{DOWN}_{k}": tensor for k, tensor in enumerate(down)} | {MID: mid}
        found = call(pair.unet, sample, at, {"encoder_hidden_states": words, **named})
        expected = pair.unet(
            sample, at, words, down_block_additional_residuals=down, mid_block_additional_residual=mid
        )
    assert torch.equal(found, expected.sample)


def test_sides_that_the_levels_do_not_halve_are_refused_beside_a_control_network(
    pair: ControlledNetwork,
) -> None:
    config: Any = pair.config
    for signature in (pair.signature, signature_of(pair.unet), pair.control_signature(pair.controls[0])):
        check_sample(signature, config, (1, 4, 6, 8))
        with pytest.raises(UsageError, match="a multiple of 2"):
            check_sample(signature, config, (1, 4, 7, 8))


def test_layers_are_named_as_in_the_pipeline_and_stay_float_as_in_each_network() -> None:
    assert part_of_layer("controlnet.nets.1.mid_block.x") == ("controlnet.nets.1", "mid_block.x")
    assert part_of_layer("mid_block.x") == ("", "mid_block.x")
    assert stays_float("unet.conv_in", (), ())
    assert stays_float("controlnet.nets.0.controlnet_mid_block", (), ())
    assert not stays_float("controlnet.mid_block.attentions.0.proj_in", (), ())
    assert not stays_float("unet.conv_in", ("unet.*",), ())


def test_a_recipe_of_both_is_split_and_joined_again(pair: ControlledNetwork) -> None:
    names = ("unet.mid_block.attentions.0.proj_in", "controlnet.nets.1.mid_block.attentions.0.proj_in")
    layers = {}
    for name in names:
        weight = float_weight(quantizable_layers(pair)[name])
        layers[name] = LayerQParams(
            name=name,
            kind="conv2d",
            weight_shape=tuple(weight.shape),
            fingerprint=fingerprint(weight),
            weight_scale=np.full(len(weight), 0.01, np.float32),
            activation_scale=np.full(1, 0.02, np.float32),
        )
    whole = Recipe(StepGroups((1000.0, 0.0)), layers, pair.signature, {}, "hash")
    assert parts_of(whole) == ("unet", "controlnet.nets.1")
    parts = {part: part_recipe(whole, part, signature_of(pair.unet)) for part in parts_of(whole)}
    assert list(parts["unet"].layers) == ["mid_block.attentions.0.proj_in"]
    assert joined_recipe(parts, pair.signature).to_bytes() == whole.to_bytes()
