"""A traced graph takes every image size that its network takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from accuquant.export.read.trace import trace
from accuquant.networks.network import signature_of

THREE_LEVELS = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "mid_block_type": None,
}


@pytest.fixture(scope="module")
def unet(make_text_unet: Callable[..., nn.Module]) -> nn.Module:
    return make_text_unet(**THREE_LEVELS)


@pytest.fixture(scope="module")
def graph(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "unet.onnx"
    ir.save(trace(unet, signature_of(unet)), path)
    return path


@pytest.mark.parametrize("size", [(8, 8), (16, 4), (5, 3), (10, 6), (7, 13)])
def test_sides_that_the_levels_do_not_divide_are_upsampled_as_in_diffusers(
    unet: nn.Module, graph: Path, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((2, 4, *size), generator=generator)
    text = torch.randn((2, 5, 16), generator=generator)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "sample": sample.numpy(),
        "timestep": torch.tensor([7.0]).numpy(),
        "encoder_hidden_states": text.numpy(),
    }
    with torch.no_grad():
        expected = unet(sample, 7.0, text).sample
    torch.testing.assert_close(torch.from_numpy(session.run(None, feeds)[0]), expected, rtol=1e-4, atol=1e-5)


def test_the_network_is_as_it_was_after_a_trace(unet: nn.Module, graph: Path) -> None:
    assert graph.exists()
    assert unet.num_upsamplers == 2
