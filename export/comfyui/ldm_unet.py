"""The names of latent diffusion's UNet: Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import re
from typing import Any

from accuquant.errors import ExportError
from accuquant.export.comfyui.rules import Rule, embedder

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def rules(config: Any) -> list[Rule]:
    """Return the rules of a UNet2DConditionModel with `config`.

    Latent diffusion counts its blocks through: each level of the encoder has `layers_per_block` of them and
    one that halves the image, each level of the decoder `layers_per_block` + 1, the last of which doubles it
    (CompVis/latent-diffusion, UNetModel). Raises ExportError where levels have different numbers of layers.
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise ExportError(
            "UNet2DConditionModel",
            got=f"layers_per_block {list(layers)}",
            expected="one number: latent diffusion's UNet has as many layers on each level",
            remedy="Export it as ONNX: leave --target comfyui out",
        )
    attended = ["Attn" in kind for kind in config["up_block_types"]]

    def down(found: re.Match[str], layer: int) -> str:
        return f"input_blocks.{1 + int(found[1]) * (layers + 1) + layer}"

    def up(found: re.Match[str], layer: int) -> str:
        return f"output_blocks.{int(found[1]) * (layers + 1) + layer}"

    def doubling(found: re.Match[str]) -> str:
        return f"{up(found, layers)}.{1 + attended[int(found[1])]}.conv"

    resnet, attention = r"\.resnets\.(\d+)\.(\w+)", r"\.attentions\.(\d+)\.(.+)"
    return [
        embedder("time_embedding", "time_embed"),
        embedder("(?:class|add)_embedding", "label_emb.0"),
        Rule("conv_in", "input_blocks.0.0"),
        Rule("conv_norm_out", "out.0"),
        Rule("conv_out", "out.2"),
        Rule(rf"down_blocks\.(\d+){resnet}", lambda m: f"{down(m, int(m[2]))}.0.{_RESNET[m[3]]}"),
        Rule(rf"down_blocks\.(\d+){attention}", lambda m: f"{down(m, int(m[2]))}.1.{m[3]}"),
        Rule(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"{down(m, layers)}.0.op"),
        Rule(rf"mid_block{resnet}", lambda m: f"middle_block.{2 * int(m[1])}.{_RESNET[m[2]]}"),
        Rule(r"mid_block\.attentions\.0\.(.+)", r"middle_block.1.\1"),
        Rule(rf"up_blocks\.(\d+){resnet}", lambda m: f"{up(m, int(m[2]))}.0.{_RESNET[m[3]]}"),
        Rule(rf"up_blocks\.(\d+){attention}", lambda m: f"{up(m, int(m[2]))}.1.{m[3]}"),
        Rule(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", doubling),
    ]
