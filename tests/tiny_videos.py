"""Tiny pipelines of diffusers that make videos: real classes, random weights, 16x16 frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny_pipelines import PIPELINES, seeded, t5


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return seeded(4, UMT5EncoderModel, config)


def wan_transformer(seed: int = 0, **changes: Any) -> Any:
    """Return a WanTransformer3DModel whose patches have 1 frame and 2x2 latents."""
    config = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 16, "freq_dim": 16, "ffn_dim": 24, "num_layers": 1, "rope_max_seq_len": 64,
    }  # fmt: skip
    return seeded(seed, diffusers.WanTransformer3DModel, **(config | changes))


def wan_vae(**changes: Any) -> Any:
    """Return an AutoencoderKLWan: sides by 8, frames by 4."""
    config = {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 2.0, 1.0],
    }  # fmt: skip
    return seeded(3, diffusers.AutoencoderKLWan, **(config | changes))


def _wan(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, _ = t5()
    return "WanPipeline", {
        "transformer": wan_transformer(),
        "vae": wan_vae(),
        "text_encoder": _umt5(),
        "tokenizer": tokenizer,
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def _wan_euler(folder: Path) -> tuple[str, dict[str, Any]]:
    class_name, parts = _wan(folder)
    return class_name, parts | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}


def _wan_image(folder: Path) -> tuple[str, dict[str, Any]]:
    _, parts = _wan(folder)
    transformer = wan_transformer(in_channels=12)
    return "WanImageToVideoPipeline", parts | {
        "transformer": transformer, "image_encoder": None, "image_processor": None,
    }  # fmt: skip


def _wan_per_token(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return Wan 2.2's TI2V 5B in small: a timestep for every token, an autoencoder of 16 pixels a side."""
    class_name, parts = _wan(folder)
    decoder = wan_vae(
        in_channels=12, out_channels=12, is_residual=True, patch_size=2, scale_factor_spatial=16,
    )  # fmt: skip
    return class_name, parts | {"vae": decoder, "expand_timesteps": True}


def _wan_two_networks(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return Wan 2.2's 14B in small: another network takes the last steps."""
    class_name, parts = _wan(folder)
    return class_name, parts | {"transformer_2": wan_transformer(seed=1), "boundary_ratio": 0.875}


def _ltx(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = t5()
    transformer = seeded(
        0, diffusers.LTXVideoTransformer3DModel, in_channels=8, out_channels=8, num_attention_heads=2,
        attention_head_dim=8, cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip
    decoder = seeded(
        3, diffusers.AutoencoderKLLTXVideo, latent_channels=8, block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
    )  # fmt: skip
    decoder.latents_mean.fill_(0.2)
    decoder.latents_std.fill_(1.4)
    return "LTXPipeline", {
        "transformer": transformer,
        "vae": decoder,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


#: Names of the pipelines that make videos; importing this module adds them to PIPELINES.
VIDEOS = ("wan", "wan-euler", "wan-per-token", "ltx")
PIPELINES |= {
    "wan": _wan,
    "wan-euler": _wan_euler,
    "wan-per-token": _wan_per_token,
    "wan-two-networks": _wan_two_networks,
    "wan-image": _wan_image,
    "ltx": _ltx,
}
