"""Tiny networks of every supported diffusers class, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accuquant.networks.signature import Signature

_TEXT_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
_PIXEL_UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("AttnDownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}
_TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
_SDXL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 20,
}
_PATCHES = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "sample_size": 8}
_PIXART = _PATCHES | {
    "out_channels": 8,
    "num_layers": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "caption_channels": 12,
}

#: Name -> (diffusers class, configuration).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("UNet2DModel", _PIXEL_UNET),
    "class-conditional": ("UNet2DModel", _PIXEL_UNET | {"num_class_embeds": 10}),
    "super-resolution": ("UNet2DModel", _PIXEL_UNET | {"in_channels": 6}),
    "stable-diffusion-1": ("UNet2DConditionModel", _TEXT_UNET | _TWO_LEVELS),
    "stable-diffusion-2": ("UNet2DConditionModel", _TEXT_UNET | {"use_linear_projection": True}),
    "inpainting": ("UNet2DConditionModel", _TEXT_UNET | {"in_channels": 9}),
    "instruct-pix2pix": ("UNet2DConditionModel", _TEXT_UNET | {"in_channels": 8}),
    "latent-upscaler": ("UNet2DConditionModel", _TEXT_UNET | {"in_channels": 7, "num_class_embeds": 50}),
    "unclip": (
        "UNet2DConditionModel",
        _TEXT_UNET | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    ),
    "latent-consistency": ("UNet2DConditionModel", _TEXT_UNET | {"time_cond_proj_dim": 8}),
    "sdxl": ("UNet2DConditionModel", _TEXT_UNET | _SDXL),
    "sdxl-refiner": (
        "UNet2DConditionModel",
        _TEXT_UNET | _SDXL | {"projection_class_embeddings_input_dim": 5 * 4 + 12},
    ),
    "dit": (
        "DiTTransformer2DModel",
        _PATCHES | {"out_channels": 8, "num_layers": 1, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
    ),
    "pixart-alpha": ("PixArtTransformer2DModel", _PIXART | {"use_additional_conditions": True}),
    "pixart-sigma": ("PixArtTransformer2DModel", _PIXART | {"use_additional_conditions": False}),
    "stable-diffusion-3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 12,
            "qk_norm": "rms_norm",
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
        },
    ),
}


def make_network(name: str, seed: int = 0) -> nn.Module:
    """Build one of NETWORKS with seeded weights; layers that start at zero get values too."""
    import diffusers

    kind, config = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = getattr(diffusers, kind)(**config).eval().requires_grad_(False)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


def make_inputs(signature: Signature, seed: int = 0, **sizes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a random sample and conditioning of a network at `sizes` beside its defaults."""
    rng = torch.Generator().manual_seed(seed)
    extents = signature.sizes | {"batch": 2, "tokens": 6, "patches": 16} | sizes
    tensors = {}
    for spec in (signature.sample, *signature.conditioning):
        shape = spec.resolve(extents)
        if spec.dtype == "int64":
            high = 2 if "mask" in spec.name else 10
            tensors[spec.name] = torch.randint(high, shape, generator=rng)
        else:
            tensors[spec.name] = torch.randn(shape, generator=rng)
    for name in ("img_ids", "txt_ids"):  # positions
        if name in tensors:
            tensors[name] = torch.arange(tensors[name].numel()).reshape(tensors[name].shape).float() / 3
    return tensors.pop(signature.sample.name), tensors
