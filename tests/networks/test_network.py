"""What a network takes, which of its layers can be quantized, what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tiny_networks import make_network
from torch import Tensor, nn

from accuquant.networks.network import (
    call,
    count_macs,
    float_weights,
    layer_kind,
    model_hash,
    quantizable_layers,
    signature_of,
)
from accuquant.networks.signature import Signature, TensorSpec


class Recorder(nn.Module):
    """A network that keeps how it was called."""

    def forward(
        self, sample: Tensor, timestep: Tensor, return_dict: bool = True, **more: Any
    ) -> tuple[Tensor]:
        self.seen = {"return_dict": return_dict, "timestep": timestep, **more}
        return (sample * 2,)


def test_call_passes_conditioning_under_its_diffusers_names() -> None:
    network = Recorder()
    text, embeds, ids = torch.ones(2, 3, 4), torch.ones(2, 5), torch.ones(2, 6)
    output = call(
        network,
        torch.ones(2, 1, 4, 4),
        torch.tensor(7),
        {"encoder_hidden_states": text, "text_embeds": embeds, "time_ids": ids},
    )
    assert torch.equal(output, torch.full((2, 1, 4, 4), 2.0))
    assert network.seen == {
        "return_dict": False,
        "timestep": torch.tensor(7),
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": embeds, "time_ids": ids},
    }


def test_call_without_conditioning_passes_nothing_more() -> None:
    network = Recorder()
    call(network, torch.ones(1, 1, 2, 2), 7)
    assert network.seen == {"return_dict": False, "timestep": 7}


class Everything(nn.Module):
    """Layers of every kind, in an order that is not alphabetical."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.inner = nn.ModuleDict({"a": nn.Linear(4, 5)})
        self.volume = nn.Conv3d(1, 1, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        x = self.up(self.norm(self.z(sample)))
        for _ in range(2):
            y = self.inner["a"](x.permute(0, 2, 3, 1))
        return (y,)


IMAGE = TensorSpec("sample", ("batch", 2, "height", "width"))
SIGNATURE = Signature(
    "Everything", IMAGE, TensorSpec("timestep", ("steps",), "int64"), (), IMAGE,
    {"batch": 3, "steps": 1, "height": 8, "width": 6},
)  # fmt: skip


def test_conv2d_linear_and_conv_transpose2d_can_be_quantized_in_module_order() -> None:
    network = Everything()
    assert list(quantizable_layers(network)) == ["z", "up", "inner.a", "unused"]
    kinds = [
        layer_kind(layer) for layer in (network.z, network.up, network.unused, network.norm, network.volume)
    ]
    assert kinds == ["conv2d", "conv_transpose2d", "linear", None, None]


def test_float_weights_are_the_weights_by_name() -> None:
    network = Everything()
    weights = float_weights(network)
    assert list(weights) == ["z", "up", "inner.a", "unused"]
    assert np.array_equal(weights["up"], network.up.weight.detach().numpy())


def test_macs_are_counted_for_one_sample_over_all_calls() -> None:
    macs = count_macs(Everything(), SIGNATURE)
    assert macs == {
        "z": 6 * (4 * 3) * (1 * 3 * 3),  # 6 output channels at 4x3, one input channel a group
        "up": 6 * (4 * 3) * (2 * 2 * 2),  # every input value meets 2 output channels a group, 2x2
        "inner.a": 2 * (8 * 6) * 4 * 5,  # called twice at 8x6
    }


def test_counting_leaves_no_hook_behind() -> None:
    network = Everything()
    assert sum(count_macs(network, SIGNATURE).values()) > 0, "the layers were seen"
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_transformer_is_called_at_the_unit_of_its_pipeline_once_a_sample() -> None:
    class FluxTransformer2DModel(nn.Module):
        def forward(self, hidden_states: Tensor, **more: Any) -> tuple[Tensor]:
            self.seen = more
            return (hidden_states,)

    network = FluxTransformer2DModel()
    call(network, torch.ones(3, 4, 8), torch.tensor(250.0), {"guidance": torch.ones(3)})
    assert torch.equal(network.seen["timestep"], torch.full((3,), 0.25))
    call(network, torch.ones(2, 4, 8), 250.0, {"aspect_ratio": torch.ones(2, 1)})
    assert torch.equal(network.seen["timestep"], torch.full((2,), 0.25))
    assert list(network.seen["added_cond_kwargs"]) == ["aspect_ratio"]


def test_macs_of_a_text_network_count_its_tokens() -> None:
    network = make_network("stable-diffusion-2")
    macs = count_macs(network, signature_of(network))
    assert macs["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == 77 * 12 * 8


def test_the_model_hash_names_the_weights_and_not_their_precision(
    make_unet: Callable[..., nn.Module],
) -> None:
    unet = make_unet()
    expected = model_hash(unet)
    assert model_hash(make_unet()) == expected
    assert model_hash(make_unet().half()) == expected
    assert model_hash(make_unet(seed=1)) != expected
    with torch.no_grad():
        unet.get_parameter("conv_norm_out.bias")[0] += 1
    assert model_hash(unet) != expected
