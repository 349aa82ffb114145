"""Released transformers with their published configurations, and what a pipeline needs to call one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
from torch import nn

_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@dataclass(frozen=True)
class Family:
    """A released model: its network's class and configuration, where that is not the class's own.

    `blocks`: the entries that count blocks, and how many there are. `parts` makes the pipeline's other parts,
    tiny but for the widths that the network is told; a scheduler alone where nothing has to be captured.
    `task` is what the pipeline is asked for then. `alike`: blocks of a kind are equal, so that what two of
    them take tells what all do.
    """

    network: type[Any]
    pipeline: str
    blocks: dict[str, int]
    parts: Callable[[], dict[str, Any]]
    configuration: dict[str, Any]
    task: dict[str, Any]
    alike: bool = True


def tokenizer(length: int) -> Any:
    """Return a T5 tokenizer of single letters."""
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((x, -3.0) for x in _LETTERS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def _text(kind: str, width: int, length: int) -> dict[str, Any]:
    """Return a tokenizer and an encoder of one layer that gives `width` channels."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    encoder = getattr(transformers, f"{kind}EncoderModel")(config)
    return {"tokenizer": tokenizer(length), "text_encoder": encoder.eval()}


def _gemma(width: int) -> dict[str, Any]:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return {"tokenizer": tokenizer(300), "text_encoder": Gemma2Model(config).eval()}


def _kl(channels: int) -> nn.Module:
    """Return an autoencoder of a few weights that divides sides by eight."""
    vae: nn.Module = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=channels, norm_num_groups=4,
    )  # fmt: skip
    return vae.eval()


def _deep_compression() -> nn.Module:
    """Return an autoencoder of a few weights that divides sides by 32."""
    vae: nn.Module = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=32, attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 6, decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6,
    )  # fmt: skip
    return vae.eval()


def _ltx_vae() -> nn.Module:
    """Return an autoencoder of a few weights that divides sides by 32 and frames by eight."""
    vae: nn.Module = diffusers.AutoencoderKLLTXVideo(
        block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )  # fmt: skip
    return vae.eval()


def _wan_vae() -> nn.Module:
    vae: nn.Module = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return vae.eval()


def _flow(shift: float) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


_VIDEO = {"image_size": 128, "num_frames": 9}
FAMILIES: dict[str, Family] = {
    "pixart-sigma": Family(  # XL/2 of 1024 pixels
        diffusers.PixArtTransformer2DModel, "PixArtSigmaPipeline", {"num_layers": 28},
        lambda: {"scheduler": diffusers.DPMSolverMultistepScheduler()},
        {"interpolation_scale": 2, "use_additional_conditions": False, "caption_channels": 4096}, {},
    ),
    "wan-2.1-1.3b": Family(
        diffusers.WanTransformer3DModel, "WanPipeline", {"num_layers": 30},
        lambda: {
            **_text("UMT5", 4096, 512), "vae": _wan_vae(),
            "scheduler": diffusers.UniPCMultistepScheduler(**_FLOW),
        },
        {"num_attention_heads": 12, "ffn_dim": 8960}, _VIDEO,
    ),
    "sana-1.6b": Family(
        diffusers.SanaTransformer2DModel, "SanaPipeline", {"num_layers": 20},
        lambda: {**_gemma(2304), "vae": _deep_compression(), "scheduler": _flow(3.0)},
        {}, {"image_size": 128},
    ),
    "ltx-2b": Family(
        diffusers.LTXVideoTransformer3DModel, "LTXPipeline", {"num_layers": 28},
        lambda: {
            **_text("T5", 4096, 128), "vae": _ltx_vae(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        },
        {}, _VIDEO,
    ),
    "sd-3.5-medium": Family(
        diffusers.SD3Transformer2DModel, "StableDiffusion3Pipeline", {"num_layers": 24},
        lambda: {"scheduler": _flow(3.0)},
        {
            "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
        }, {},
        alike=False,  # the first 13 have a second attention
    ),
    "aura-flow": Family(
        diffusers.AuraFlowTransformer2DModel, "AuraFlowPipeline",
        {"num_mmdit_layers": 4, "num_single_dit_layers": 32},
        lambda: {**_text("UMT5", 2048, 256), "vae": _kl(4), "scheduler": _flow(1.73)},
        {}, {"image_size": 128},
    ),
    "chroma": Family(
        diffusers.ChromaTransformer2DModel, "ChromaPipeline", {"num_layers": 19, "num_single_layers": 38},
        lambda: {**_text("T5", 4096, 512), "vae": _kl(16), "scheduler": _flow(1.0)},
        {}, {"image_size": 128},
    ),
}  # fmt: skip
