"""What each network takes, read from its configuration and compared with the class itself."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tiny_networks import NETWORKS, make_inputs, make_network

from accuquant.errors import SourceError
from accuquant.networks.architectures import SUPPORTED, read_signature
from accuquant.networks.network import call, signature_of
from accuquant.networks.signature import TensorSpec

_ADDED = {"text_embeds", "time_ids", "resolution", "aspect_ratio"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_what_its_signature_says_and_returns_the_output(name: str) -> None:
    network = make_network(name)
    signature = signature_of(network)
    assert signature.architecture == NETWORKS[name][0]
    arguments = set(inspect.signature(network.forward).parameters)
    for spec in signature.inputs:
        assert spec.name in (_ADDED if spec.name in _ADDED else arguments)
    sample, conditioning = make_inputs(signature)
    with torch.no_grad():
        output = call(network, sample, 300.5, conditioning)
    sizes = signature.sizes | {"batch": 2, "tokens": 6, "patches": 16}
    assert tuple(output.shape) == signature.output.resolve(sizes)


def names_of(kind: str, **config: Any) -> dict[str, tuple[Any, ...]]:
    """The conditioning of a class at its default configuration with changes."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind)).parameters.values()
    defaults = {p.name: p.default for p in parameters}
    return {spec.name: spec.shape for spec in read_signature(kind, defaults | config).conditioning}


def test_stable_diffusion_takes_the_hidden_states_of_its_text_encoder() -> None:
    assert names_of("UNet2DConditionModel", cross_attention_dim=768) == {
        "encoder_hidden_states": ("batch", "tokens", 768)
    }


def test_the_sizes_of_sdxl_and_its_refiner_follow_from_their_published_configurations() -> None:
    text_time = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    base = names_of(
        "UNet2DConditionModel",
        cross_attention_dim=2048,
        projection_class_embeddings_input_dim=2816,
        **text_time,
    )
    assert base["text_embeds"] == ("batch", 1280)
    assert base["time_ids"] == ("batch", 6)
    refiner = names_of(
        "UNet2DConditionModel",
        cross_attention_dim=1280,
        projection_class_embeddings_input_dim=2560,
        **text_time,
    )
    assert refiner["text_embeds"] == ("batch", 1280)
    assert refiner["time_ids"] == ("batch", 5)


def test_flux_without_guidance_embedding_takes_none() -> None:
    assert "guidance" in names_of("FluxTransformer2DModel", guidance_embeds=True)
    assert "guidance" not in names_of("FluxTransformer2DModel", guidance_embeds=False)


def test_flux_is_called_with_a_thousandth_of_the_timestep() -> None:
    config = NETWORKS["flux"][1] | {"out_channels": None}
    assert read_signature("FluxTransformer2DModel", config).timestep_divisor == 1000
    assert read_signature("UNet2DModel", NETWORKS["ddpm"][1]).timestep_divisor == 1


def test_a_unet_takes_any_size_and_fractions_of_timesteps() -> None:
    config = NETWORKS["ddpm"][1] | {"sample_size": (8, 16), "out_channels": 6}
    signature = read_signature("UNet2DModel", config)
    assert signature.sample == TensorSpec("sample", ("batch", 3, "height", "width"))
    assert signature.timestep == TensorSpec("timestep", ("steps",), "float32")
    assert signature.output == TensorSpec("out_sample", ("batch", 6, "height", "width"))
    assert signature.sizes == {"batch": 1, "steps": 1, "height": 8, "width": 16}
    assert read_signature("UNet2DModel", config | {"sample_size": None}).sizes["height"] == 32


def test_a_transformer_with_constant_positions_has_one_size() -> None:
    dit = signature_of(make_network("dit"))
    assert dit.sample.shape == ("batch", 4, 8, 8)
    assert dit.output.shape == ("batch", 8, 8, 8)
    assert signature_of(make_network("stable-diffusion-3")).sample.shape == ("batch", 4, "height", "width")


def test_another_architecture_is_refused_with_the_list_and_the_way_to_add_it() -> None:
    with pytest.raises(SourceError, match=r"network UNet3DConditionModel: .*architectures\.py") as caught:
        read_signature("UNet3DConditionModel", {})
    assert all(name in str(caught.value) for name in SUPPORTED)


@pytest.mark.parametrize(
    ("key", "value"), [("addition_embed_type", "image"), ("encoder_hid_dim_type", "ip_image_proj")]
)
def test_a_variant_that_takes_images_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(SourceError, match=rf"{key} '{value}', expected one of None, 'text"):
        read_signature("UNet2DConditionModel", NETWORKS["stable-diffusion-1"][1] | {key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_size": 0.5},
        {"sample_size": [8]},
        {"sample_size": "8"},
        {"sample_size": -8},
        {"in_channels": 10**30},
        {"in_channels": None},
        {"out_channels": {}},
        {"block_out_channels": 8},
        {"num_class_embeds": "many"},
    ],
)
def test_a_configuration_with_values_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    config = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8]}
    assert read_signature("UNet2DModel", config).sizes["height"] == 8
    with pytest.raises(SourceError, match=r"configuration of network UNet2DModel: got .*config\.json"):
        read_signature("UNet2DModel", config | changes)
