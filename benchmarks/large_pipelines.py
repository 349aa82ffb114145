"""What stands around a full-size network in its pipeline: a scheduler, tiny encoders and decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

#: Model -> the class of its network, and what its pipeline calls it.
CLASSES: dict[str, type[Any]] = {
    "tiny": diffusers.UNet2DConditionModel,
    "sd15": diffusers.UNet2DConditionModel,
    "sdxl": diffusers.UNet2DConditionModel,
    "flux": diffusers.FluxTransformer2DModel,
}
COMPONENT = {"tiny": "unet", "sd15": "unet", "sdxl": "unet", "flux": "transformer"}
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_TOKENS = 77


def write_parts(name: str, folder: Path, *, full: bool = False) -> None:
    """Write all parts of a pipeline but its network, and the model_index.json that lists them.

    Text encoders and autoencoder are tiny; with `full` those of Stable Diffusion 1.5 have their own size.
    """
    torch.manual_seed(0)
    class_name, parts = {
        "tiny": _stable_diffusion, "sd15": _stable_diffusion, "sdxl": _sdxl, "flux": _flux,
    }[name](folder, name)  # fmt: skip
    entries: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": diffusers.__version__}
    for part, value in parts.items():
        value.save_pretrained(folder / part)
        entries[part] = [type(value).__module__.split(".")[0], type(value).__name__]
    if full:
        _full_clip().save_pretrained(folder / "text_encoder")
        _full_vae().save_pretrained(folder / "vae")
    network = COMPONENT[name]
    entries[network] = ["diffusers", CLASSES[name].__name__]
    if class_name == "StableDiffusionPipeline":
        entries |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(entries))


def _stable_diffusion(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = _clip(folder / "words", 64 if name == "tiny" else 768)
    scheduler = diffusers.DDIMScheduler(**_NOISE, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    return "StableDiffusionPipeline", {
        "vae": _vae(4), "tokenizer": tokenizer, "text_encoder": encoder, "scheduler": scheduler,
    }  # fmt: skip


def _sdxl(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = _clip(folder / "words", 768)
    tokenizer_2, encoder_2 = _clip(folder / "words", 1280, projected=True)
    return "StableDiffusionXLPipeline", {
        "vae": _vae(4), "tokenizer": tokenizer, "text_encoder": encoder,
        "tokenizer_2": tokenizer_2, "text_encoder_2": encoder_2,
        "scheduler": diffusers.EulerDiscreteScheduler(**_NOISE, steps_offset=1),
    }  # fmt: skip


def _flux(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    import transformers

    tokenizer, encoder = _clip(folder / "words", 768)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((x, -3.0) for x in _LETTERS)]
    config = transformers.T5Config(vocab_size=64, d_model=4096, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return "FluxPipeline", {
        "vae": _vae(16), "tokenizer": tokenizer, "text_encoder": encoder,
        "tokenizer_2": transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
        "text_encoder_2": transformers.T5EncoderModel(config).eval(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }  # fmt: skip


def _clip(folder: Path, width: int, *, projected: bool = False) -> tuple[Any, nn.Module]:
    """Return a CLIP tokenizer of single letters, and a text encoder of one or two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=_TOKENS
    )
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=_TOKENS, bos_token_id=52, eos_token_id=53,
        pad_token_id=53, projection_dim=width,
    )  # fmt: skip
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _full_clip() -> Any:
    """Return a text encoder of CLIP ViT-L/14's size: 123 M parameters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=_TOKENS, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        projection_dim=768,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def _full_vae() -> Any:
    """Return an autoencoder of Stable Diffusion's size: 84 M parameters."""
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
    ).eval()  # fmt: skip


def _vae(channels: int) -> nn.Module:
    """Return a decoder of a few weights that makes images of eight times the latents' sides."""
    vae: nn.Module = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=channels, norm_num_groups=4,
    )  # fmt: skip
    return vae.eval()
