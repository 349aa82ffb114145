"""Tiny pipelines of the image transformers of 2024 to 2026: real classes of diffusers, random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from tiny_pipelines import PIPELINES, seeded, t5, vae

#: What chat models' tokenizers write around a prompt.
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] if part['type'] == 'text' else '' }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|object_ref_start|>", "<|object_ref_end|>",
)  # fmt: skip
#: Bytes as byte-level tokenizers write them, and the special tokens.
_WORDS = 256 + len(_SPECIAL)
_IMAGE_TOKEN, _VIDEO_TOKEN = 256 + 5, 256 + 6
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "type": "default"}


def byte_tokenizer(max_length: int = 1024) -> Any:
    """Return a Qwen2 tokenizer of single bytes, with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = {letter: k for k, letter in enumerate(sorted(ByteLevel.alphabet()))}
    words |= {word: 256 + k for k, word in enumerate(_SPECIAL)}
    tokenizer = Qwen2Tokenizer(
        vocab=words, merges=[], model_max_length=max_length,
        extra_special_tokens={"image_token": "<|image_pad|>"},
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL[1:])})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def qwen3(layers: int = 3, width: int = 16) -> Any:
    """Return a Qwen 3 as text encoder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=_WORDS, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, bos_token_id=256, eos_token_id=256,
        pad_token_id=256,
    )  # fmt: skip
    return seeded(4, Qwen3ForCausalLM, config)


def qwen2_vl(width: int = 16) -> Any:
    """Return a Qwen 2.5 VL as encoder of texts and images."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": _WORDS, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": _ROPE, "rope_theta": 1e6,
        "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "patch_size": 14, "fullatt_block_indexes": [0], "window_size": 28,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=_IMAGE_TOKEN, video_token_id=_VIDEO_TOKEN,
        vision_start_token_id=256 + 3, vision_end_token_id=256 + 4,
    )  # fmt: skip
    return seeded(4, Qwen2_5_VLForConditionalGeneration, config)


def flow(**changes: Any) -> Any:
    """Return the scheduler that these pipelines come with."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**({"use_dynamic_shifting": True} | changes))


def qwen_vae(levels: int = 2) -> Any:
    """Return an AutoencoderKLQwenImage that divides the sides by 2 ** (levels - 1)."""
    return seeded(
        3, diffusers.AutoencoderKLQwenImage, base_dim=8, z_dim=4, dim_mult=[1] * levels, num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1), latents_mean=[0.1, -0.2, 0.0, 0.3],
        latents_std=[1.1, 0.9, 1.3, 0.8],
    )  # fmt: skip


def _flux_fill(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one whose network sees masked image (16) and mask (4 pixels a patch, each of 2x2) too."""
    _, parts = PIPELINES["flux"](folder)
    transformer = seeded(
        0, diffusers.FluxTransformer2DModel, patch_size=1, in_channels=16 + 16 + 16, out_channels=16,
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return "FluxFillPipeline", parts | {"transformer": transformer}


def _flux_kontext(folder: Path) -> tuple[str, dict[str, Any]]:
    return "FluxKontextPipeline", PIPELINES["flux"](folder)[1]


def qwen_network(**changes: Any) -> Any:
    """Return a QwenImageTransformer2DModel."""
    config = {
        "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 4),
    }  # fmt: skip
    return seeded(0, diffusers.QwenImageTransformer2DModel, **(config | changes))


def _qwen_image(folder: Path) -> tuple[str, dict[str, Any]]:
    return "QwenImagePipeline", {
        "transformer": qwen_network(),
        "vae": qwen_vae(),
        "text_encoder": qwen2_vl(),
        "tokenizer": byte_tokenizer(),
        "scheduler": flow(),
    }


def _qwen_edit(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one whose autoencoder divides by 64: the pipeline edits images of a million pixels."""
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessor

    _, parts = _qwen_image(folder)
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    # as Qwen2VLProcessor, whose part for videos asks for torchvision
    processor = PaddleOCRVLProcessor(images, parts["tokenizer"])
    return "QwenImageEditPipeline", parts | {"vae": qwen_vae(levels=7), "processor": processor}


def z_image_network() -> Any:
    """Return a ZImageTransformer2DModel whose filling is not zero, as a trained one's."""
    network = seeded(
        0, diffusers.ZImageTransformer2DModel, in_channels=4, dim=16, n_layers=1, n_refiner_layers=1,
        n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 2, 2], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    for token in (network.x_pad_token, network.cap_pad_token):
        token.data.fill_(0.3)
    return network


def _z_image(folder: Path) -> tuple[str, dict[str, Any]]:
    return "ZImagePipeline", {
        "transformer": z_image_network(),
        "vae": vae(shift_factor=0.06),
        "text_encoder": qwen3(),
        "tokenizer": byte_tokenizer(),
        "scheduler": flow(use_dynamic_shifting=False, shift=3.0),
    }


def flux2_vae() -> Any:
    """Return an AutoencoderKLFlux2 that halves the image."""
    return seeded(
        3, diffusers.AutoencoderKLFlux2, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, sample_size=16,
    )  # fmt: skip


def _flux2_network(**changes: Any) -> Any:
    config = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": (2, 2, 2, 2),
        "timestep_guidance_channels": 16,
    }  # fmt: skip
    return seeded(0, diffusers.Flux2Transformer2DModel, **(config | changes))


def _flux2_klein(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one with a text encoder of 27 layers, of which the pipeline reads three."""
    return "Flux2KleinPipeline", {
        "transformer": _flux2_network(guidance_embeds=False),
        "vae": flux2_vae(),
        "text_encoder": qwen3(layers=28),
        "tokenizer": byte_tokenizer(),
        "scheduler": flow(),
        "is_distilled": False,
    }


def _flux2(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one with a tokenizer in place of Pixtral's processor, which asks for torchvision."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralVisionConfig,
    )

    text = MistralConfig(
        vocab_size=_WORDS, hidden_size=16, intermediate_size=16, num_hidden_layers=31, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16,
    )  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=_IMAGE_TOKEN)
    return "Flux2Pipeline", {
        "transformer": _flux2_network(guidance_embeds=True),
        "vae": flux2_vae(),
        "text_encoder": seeded(4, Mistral3ForConditionalGeneration, config),
        "tokenizer": byte_tokenizer(),
        "scheduler": flow(),
    }


def _hunyuan_dit(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one whose autoencoder divides by 8, as the pipeline's positions do."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + k) for k in range(26))]
    words += [f"##{letter}" for letter in words[5:]]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    tokenizer_2, encoder_2 = t5()
    transformer = seeded(
        0, diffusers.HunyuanDiT2DModel, sample_size=8, patch_size=2, in_channels=4, num_layers=4,
        num_attention_heads=2, attention_head_dim=8, hidden_size=16, cross_attention_dim=16,
        cross_attention_dim_t5=16, pooled_projection_dim=16, text_len=77, text_len_t5=256,
    )  # fmt: skip
    decoder = vae(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, sample_size=64,
    )  # fmt: skip
    return "HunyuanDiTPipeline", {
        "transformer": transformer,
        "vae": decoder,
        "text_encoder": seeded(4, BertModel, config),
        "tokenizer": BertTokenizer(str(folder / "vocab.txt")),
        "text_encoder_2": encoder_2,
        "tokenizer_2": tokenizer_2,
        "scheduler": diffusers.DDPMScheduler(beta_end=0.018, beta_schedule="scaled_linear", steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


#: Name -> (class, components), as in tiny_pipelines.
IMAGE_TRANSFORMERS: dict[str, Callable[[Path], tuple[str, dict[str, Any]]]] = {
    "flux-fill": _flux_fill,
    "flux-kontext": _flux_kontext,
    "qwen": _qwen_image,
    "qwen-edit": _qwen_edit,
    "zimage": _z_image,
    "flux2": _flux2,
    "flux2-klein": _flux2_klein,
    "hunyuan-dit": _hunyuan_dit,
}
