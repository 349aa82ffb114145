"""Which layers are quantized."""

from __future__ import annotations

import pytest
from tiny_networks import make_network
from torch import nn

from accuquant.calibration.placement import Placement, place
from accuquant.errors import UsageError
from accuquant.networks.network import count_macs, signature_of


@pytest.fixture
def network() -> nn.Module:
    """Return modules with the names of a UNet."""
    root = nn.Module()
    root.conv_in = nn.Conv2d(1, 1, 1)
    root.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(1, 1), "linear_2": nn.Linear(1, 1)})
    root.down = nn.ModuleDict(
        {name: nn.Conv2d(1, 1, 1) for name in ("conv1", "conv2", "conv_shortcut", "time_emb_proj")}
    )
    root.attention = nn.ModuleDict({"to_q": nn.Linear(1, 1), "to_out": nn.Sequential(nn.Linear(1, 1))})
    root.never_run = nn.Linear(1, 1)
    root.conv_out = nn.Conv2d(1, 1, 1)
    return root


MACS = {
    "conv_in": 10,
    "time_embedding.linear_1": 1,
    "time_embedding.linear_2": 1,
    "down.conv1": 40,
    "down.conv2": 30,
    "down.conv_shortcut": 4,
    "down.time_emb_proj": 2,
    "attention.to_q": 1,
    "attention.to_out.0": 1,
    "conv_out": 10,
}


def test_ends_embeddings_and_shortcuts_stay_float_by_default(network: nn.Module) -> None:
    placement = place(network, MACS)
    assert placement.quantized == ("down.conv1", "down.conv2", "attention.to_q", "attention.to_out.0")
    assert placement.float_layers == (
        "conv_in",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "down.conv_shortcut",
        "down.time_emb_proj",
        "conv_out",
    )
    assert placement.int8_share == pytest.approx(72 / 100)


def test_include_overrides_the_defaults(network: nn.Module) -> None:
    placement = place(network, MACS, include=["*shortcut", "conv_*"])
    assert {"conv_in", "conv_out", "down.conv_shortcut"} <= set(placement.quantized)
    assert "down.time_emb_proj" in placement.float_layers


def test_exclude_wins_over_include(network: nn.Module) -> None:
    placement = place(network, MACS, include=["conv_in"], exclude=["conv_*", "attention.*"])
    assert placement.quantized == ("down.conv1", "down.conv2")


def test_every_layer_that_runs_is_on_one_side(network: nn.Module) -> None:
    placement = place(network, MACS, exclude=["down.conv1"])
    assert sorted(placement.quantized + placement.float_layers) == sorted(MACS)


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["down.conv", "mid.*", "", "never_run", "DOWN.*"])
def test_a_pattern_that_matches_nothing_is_an_error(network: nn.Module, option: str, pattern: str) -> None:
    with pytest.raises(UsageError, match=rf"--{option} '.*': got a pattern that matches no layer"):
        place(network, MACS, **{option: ["down.*", pattern]})


def test_refuses_to_leave_nothing(network: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"--exclude: got patterns that leave no layer"):
        place(network, MACS, exclude=["*"])


def test_without_moves_layers_to_float(network: nn.Module) -> None:
    placement = place(network, MACS).without(["down.conv1"])
    assert "down.conv1" not in placement.quantized
    assert placement.float_layers[-1] == "down.conv1"
    assert placement.int8_share == pytest.approx(32 / 100)


def test_no_operations_are_no_share() -> None:
    assert Placement((), (), {}).int8_share == 0


@pytest.mark.parametrize(
    ("name", "float_layers"),
    [
        ("sdxl", {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"}),
        ("dit", {"pos_embed.proj", "transformer_blocks.0.norm1.linear", "proj_out_1", "proj_out_2"}),
        (
            "pixart-alpha",
            {"pos_embed.proj", "adaln_single.linear", "caption_projection.linear_1", "proj_out"},
        ),
        ("stable-diffusion-3", {"pos_embed.proj", "context_embedder", "norm_out.linear", "proj_out"}),
        ("flux", {"x_embedder", "context_embedder", "single_transformer_blocks.0.norm.linear", "proj_out"}),
    ],
)
def test_what_embeds_or_modulates_stays_float_and_every_block_is_quantized(
    name: str, float_layers: set[str]
) -> None:
    network = make_network(name)
    placement = place(network, count_macs(network, signature_of(network)))
    assert float_layers <= set(placement.float_layers)
    inner = ("attn", "attn1", "attn2", "ff", "ff_context", "proj_mlp", "conv1", "conv2", "proj_in")
    for layer in placement.quantized:
        assert any(part in inner for part in layer.split(".")) or ".proj_out" in layer
    for layer in placement.float_layers:
        assert not any(part in inner for part in layer.split("."))
