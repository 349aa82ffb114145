"""Tiny checkpoints in the layout of the original code: what diffusers' from_single_file takes apart again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
#: Of the networks of tiny_pipelines: one level, one layer, Stable Diffusion's order.
_UNET = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_ATTENTION = {
    "group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out.",
}  # fmt: skip


def ldm_unet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a tiny UNet's weights under the names of the latent diffusion code."""
    found = {}
    for name, tensor in weights.items():
        prefix = next(prefix for prefix in _UNET if name.startswith(prefix))
        rest = name.removeprefix(prefix)
        if "resnets" in prefix:
            part, _, last = rest.partition(".")
            rest = f"{_RESNET[part]}.{last}"
        found[f"model.diffusion_model.{_UNET[prefix]}{rest}"] = tensor
    return found


def ldm_vae(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return an autoencoder's weights under the names of the latent diffusion code."""
    found = {}
    for name, tensor in weights.items():
        words = name.split(".")
        if "down_blocks" in words or "up_blocks" in words:
            side = "down" if words[1] == "down_blocks" else "up"
            level = int(words[2]) if side == "down" else levels - 1 - int(words[2])
            block = {"resnets": f"block.{words[4]}", "downsamplers": "downsample", "upsamplers": "upsample"}
            tail = ".".join(words[5:]).replace("conv_shortcut", "nin_shortcut")
            name = f"{words[0]}.{side}.{level}.{block[words[3]]}.{tail}"
        elif "mid_block" in words:
            kind = f"block_{int(words[3]) + 1}" if words[2] == "resnets" else "attn_1"
            tail = ".".join(words[4:])
            if kind == "attn_1":
                old = next(old for old in _ATTENTION if f"{tail}".startswith(old))
                tail = tail.replace(old, _ATTENTION[old])
                # the original code has its products as convolutions of one pixel
                tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
            name = f"{words[0]}.mid.{kind}.{tail}"
        found[f"first_stage_model.{name.replace('conv_norm_out', 'norm_out')}"] = tensor
    return found


def ldm_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the tiny Stable Diffusion in `folder`, as a single file of the original code."""
    from safetensors.torch import load_file

    def part(name: str, file: str) -> dict[str, Tensor]:
        return load_file(folder / name / file)

    clip = part("text_encoder", "model.safetensors")
    prefix = "" if any(name.startswith("text_model.") for name in clip) else "text_model."
    return {
        **ldm_unet(part("unet", "diffusion_pytorch_model.safetensors")),
        **ldm_vae(part("vae", "diffusion_pytorch_model.safetensors"), levels=2),
        **{f"cond_stage_model.transformer.{prefix}{name}": tensor for name, tensor in clip.items()},
        "betas": torch.zeros(1000),
    }
