"""Tiny pipelines of every supported diffusers class: real classes, random weights, 16x16 images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

#: What Stable Diffusion's schedulers are configured with.
SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_SDXL_CHANGES: dict[str, Any] = {
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12 + 6 * 4,
}
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def seeded(seed: int, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Build a network whose random weights follow from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **kwargs).eval()


def text_unet(seed: int = 0, **changes: Any) -> nn.Module:
    """Return a UNet2DConditionModel as in Stable Diffusion, for 8x8 latents."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    unet: nn.Module = seeded(seed, diffusers.UNet2DConditionModel, **(config | changes))
    return unet


def vae(**changes: Any) -> Any:
    """Return an AutoencoderKL that halves the image."""
    config = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return seeded(3, diffusers.AutoencoderKL, **(config | changes))


def clip(folder: Path, *, projection: int = 0, seed: int = 0) -> tuple[Any, Any]:
    """Return a CLIP tokenizer of single letters and a text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(exist_ok=True)
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=52, eos_token_id=53,
        pad_token_id=53, projection_dim=projection or 16,
    )  # fmt: skip
    return tokenizer, seeded(seed, CLIPTextModelWithProjection if projection else CLIPTextModel, config)


def t5(width: int = 16) -> tuple[Any, Any]:
    """Return a T5 tokenizer of single letters and a text encoder."""
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((x, -3.0) for x in _LETTERS)]
    if int(transformers.__version__.split(".")[0]) >= 5:
        tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=120)
    else:  # the slow class of transformers 4 reads a file of another library
        import tokenizers

        words = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        words.post_processor = tokenizers.processors.TemplateProcessing(
            "$A </s>", special_tokens=[("</s>", 1)]
        )
        tokenizer = transformers.T5TokenizerFast(  # type: ignore[attr-defined]  # of transformers 4
            tokenizer_object=words, extra_ids=0, model_max_length=120
        )
    config = transformers.T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return tokenizer, seeded(4, transformers.T5EncoderModel, config)


def save_pipeline(kind: str, folder: Path) -> Path:
    """Build the pipeline called `kind`, save it inside `folder` and return where."""
    from tiny_image_transformers import IMAGE_TRANSFORMERS  # which imports this module

    class_name, parts = (PIPELINES | IMAGE_TRANSFORMERS)[kind](folder)
    path = folder / "pipeline"
    getattr(diffusers, class_name)(**parts).save_pretrained(path)
    return path


def _stable_diffusion(folder: Path, scheduler: Any = None, **changes: Any) -> dict[str, Any]:
    tokenizer, encoder = clip(folder)
    return {
        "vae": vae(),
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "unet": text_unet(**changes),
        "scheduler": scheduler or diffusers.PNDMScheduler(**SD_NOISE, skip_prk_steps=True),
        **_UNCHECKED,
    }


def _sd(folder: Path) -> tuple[str, dict[str, Any]]:
    return "StableDiffusionPipeline", _stable_diffusion(folder)


def _sd_v(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = diffusers.DDIMScheduler(**SD_NOISE, prediction_type="v_prediction", clip_sample=False)
    return "StableDiffusionPipeline", _stable_diffusion(folder, scheduler)


def _sd_heun(folder: Path) -> tuple[str, dict[str, Any]]:
    return "StableDiffusionPipeline", _stable_diffusion(folder, diffusers.HeunDiscreteScheduler(**SD_NOISE))


def _sd_unipc(folder: Path) -> tuple[str, dict[str, Any]]:
    return "StableDiffusionPipeline", _stable_diffusion(folder, diffusers.UniPCMultistepScheduler(**SD_NOISE))


def _inpaint(folder: Path) -> tuple[str, dict[str, Any]]:
    return "StableDiffusionInpaintPipeline", _stable_diffusion(folder, in_channels=9)


def _pix2pix(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD_NOISE)
    return "StableDiffusionInstructPix2PixPipeline", _stable_diffusion(folder, scheduler, in_channels=8)


def _upscale(folder: Path) -> tuple[str, dict[str, Any]]:
    parts = _stable_diffusion(folder, in_channels=7, num_class_embeds=1000)
    parts["vae"].register_to_config(scaling_factor=0.08333)
    del parts["requires_safety_checker"]
    low_res = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return "StableDiffusionUpscalePipeline", parts | {"low_res_scheduler": low_res}


def _lcm(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = diffusers.LCMScheduler(**SD_NOISE, original_inference_steps=50)
    return "LatentConsistencyModelPipeline", _stable_diffusion(folder, scheduler, time_cond_proj_dim=8)


def _sdxl(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = clip(folder)
    tokenizer_2, encoder_2 = clip(folder / "second", projection=12, seed=1)
    return "StableDiffusionXLPipeline", {
        "vae": vae(),
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": encoder_2,
        "unet": text_unet(**_SDXL_CHANGES),
        "scheduler": diffusers.EulerDiscreteScheduler(**SD_NOISE),
    }


def _sdxl_pix2pix(folder: Path) -> tuple[str, dict[str, Any]]:
    _, parts = _sdxl(folder)
    return "StableDiffusionXLInstructPix2PixPipeline", parts | {
        "unet": text_unet(**_SDXL_CHANGES, in_channels=8)
    }


def _variation(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one that is conditioned by an image's embedding in place of a text."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=16,
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    return "StableDiffusionImageVariationPipeline", {
        "vae": vae(),
        "image_encoder": seeded(6, CLIPVisionModelWithProjection, config),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
        "unet": text_unet(),
        "scheduler": diffusers.PNDMScheduler(**SD_NOISE, skip_prk_steps=True),
        "safety_checker": None,
        "requires_safety_checker": False,
    }


def _ldm_text(folder: Path) -> tuple[str, dict[str, Any]]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    tokenizer, _ = clip(folder)
    config = LDMBertConfig(
        vocab_size=54, d_model=16, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2,
        max_position_embeddings=77, head_dim=8, pad_token_id=53,
    )  # fmt: skip
    return "LDMTextToImagePipeline", {
        "vqvae": vae(),
        "bert": seeded(5, LDMBertModel, config),
        "tokenizer": tokenizer,
        "unet": text_unet(),
        "scheduler": diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False),
    }


def _super_resolution(folder: Path) -> tuple[str, dict[str, Any]]:
    unet = seeded(
        0, diffusers.UNet2DModel, sample_size=8, in_channels=6, out_channels=3, layers_per_block=1,
        block_out_channels=(8,), norm_num_groups=4, attention_head_dim=8, add_attention=False,
        down_block_types=("AttnDownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    vqvae = seeded(
        3, diffusers.VQModel, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, norm_num_groups=4, sample_size=16,
        num_vq_embeddings=16,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False)
    return "LDMSuperResolutionPipeline", {"vqvae": vqvae, "unet": unet, "scheduler": scheduler}


def _ldm(folder: Path) -> tuple[str, dict[str, Any]]:
    _, parts = _super_resolution(folder)
    unet = seeded(
        0, diffusers.UNet2DModel, sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(8,), norm_num_groups=4, attention_head_dim=8, add_attention=False,
        down_block_types=("AttnDownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return "LDMPipeline", parts | {"unet": unet}


def _dit(folder: Path) -> tuple[str, dict[str, Any]]:
    transformer = seeded(
        0, diffusers.DiTTransformer2DModel, sample_size=8, in_channels=4, out_channels=8, num_layers=1,
        num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return "DiTPipeline", {"transformer": transformer, "vae": vae(), "scheduler": scheduler}


def _pixart(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = t5()
    transformer = seeded(
        0, diffusers.PixArtTransformer2DModel, sample_size=8, in_channels=4, out_channels=8, num_layers=1,
        num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        use_additional_conditions=False,
    )  # fmt: skip
    return "PixArtSigmaPipeline", {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }


def _pixart_alpha(folder: Path) -> tuple[str, dict[str, Any]]:
    return "PixArtAlphaPipeline", _pixart(folder)[1]


def _sdxl_inpaint(folder: Path) -> tuple[str, dict[str, Any]]:
    _, parts = _sdxl(folder)
    unet = text_unet(**_SDXL_CHANGES, in_channels=9)
    return "StableDiffusionXLInpaintPipeline", parts | {"unet": unet}


def _sd3(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = clip(folder, projection=12)
    tokenizer_2, encoder_2 = clip(folder / "second", projection=12, seed=1)
    tokenizer_3, encoder_3 = t5(width=32)
    transformer = seeded(
        0, diffusers.SD3Transformer2DModel, sample_size=8, patch_size=2, in_channels=4, out_channels=4,
        num_layers=1, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=32,
        caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=8,
    )  # fmt: skip
    return "StableDiffusion3Pipeline", {
        "transformer": transformer,
        "vae": vae(shift_factor=0.06),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": encoder_2,
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": encoder_3,
        "tokenizer_3": tokenizer_3,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _sd3_wide(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return one with 16 latent channels, which the inpainting pipeline asks for."""
    class_name, parts = _sd3(folder)
    transformer = seeded(
        0, diffusers.SD3Transformer2DModel, sample_size=8, patch_size=2, in_channels=16, out_channels=16,
        num_layers=1, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=32,
        caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=8,
    )  # fmt: skip
    decoder = vae(shift_factor=0.06, latent_channels=16)
    return class_name, parts | {"transformer": transformer, "vae": decoder}


def _flux(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = clip(folder)
    tokenizer_2, encoder_2 = t5()
    transformer = seeded(
        0, diffusers.FluxTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return "FluxPipeline", {
        "transformer": transformer,
        "vae": vae(shift_factor=0.06),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": encoder_2,
        "tokenizer_2": tokenizer_2,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _chroma(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, encoder = t5()
    transformer = seeded(
        0, diffusers.ChromaTransformer2DModel, patch_size=1, in_channels=16, num_layers=1,
        num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return "ChromaPipeline", {
        "transformer": transformer,
        "vae": vae(shift_factor=0.06),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _aura_flow(folder: Path) -> tuple[str, dict[str, Any]]:
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer, _ = t5()
    config = UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = seeded(
        0, diffusers.AuraFlowTransformer2DModel, sample_size=8, patch_size=2, in_channels=4,
        num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    return "AuraFlowPipeline", {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": seeded(4, UMT5EncoderModel, config),
        "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    }


def gemma(width: int = 16) -> Any:
    """Return a Gemma 2 as text encoder."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return seeded(4, Gemma2Model, config)


def _sana(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, _ = t5()
    transformer = seeded(
        0, diffusers.SanaTransformer2DModel, sample_size=8, patch_size=1, in_channels=4, out_channels=4,
        num_layers=1, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
    )  # fmt: skip
    decoder = seeded(
        3, diffusers.AutoencoderDC, in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), scaling_factor=0.41,
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )  # fmt: skip
    return "SanaPipeline", {
        "transformer": transformer,
        "vae": decoder,
        "text_encoder": gemma(),
        "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def lumina_network() -> Any:
    """Return a Lumina2Transformer2DModel."""
    return seeded(
        0, diffusers.Lumina2Transformer2DModel, sample_size=8, patch_size=2, in_channels=4, hidden_size=16,
        num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
        ffn_dim_multiplier=1.0, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 64, 64), cap_feat_dim=16,
    )  # fmt: skip


def _lumina(folder: Path) -> tuple[str, dict[str, Any]]:
    tokenizer, _ = t5()
    return "Lumina2Pipeline", {
        "transformer": lumina_network(),
        "vae": vae(shift_factor=0.06),
        "text_encoder": gemma(),
        "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _sd35(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return Stable Diffusion 3.5 medium's form: second attention, normalized queries and keys."""
    class_name, parts = _sd3(folder)
    transformer = seeded(
        0, diffusers.SD3Transformer2DModel, sample_size=8, patch_size=2, in_channels=4, out_channels=4,
        num_layers=2, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=32,
        caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return class_name, parts | {"transformer": transformer}


#: Name -> (class, components), given a folder for what tokenizers are read from.
PIPELINES: dict[str, Callable[[Path], tuple[str, dict[str, Any]]]] = {
    "sd": _sd,
    "sd-v": _sd_v,
    "sd-heun": _sd_heun,
    "sd-unipc": _sd_unipc,
    "inpaint": _inpaint,
    "pix2pix": _pix2pix,
    "upscale": _upscale,
    "lcm": _lcm,
    "sdxl": _sdxl,
    "sdxl-inpaint": _sdxl_inpaint,
    "sdxl-pix2pix": _sdxl_pix2pix,
    "variation": _variation,
    "ldm": _ldm,
    "ldm-text": _ldm_text,
    "super-resolution": _super_resolution,
    "dit": _dit,
    "pixart": _pixart,
    "pixart-alpha": _pixart_alpha,
    "sd3": _sd3,
    "sd3-wide": _sd3_wide,
    "flux": _flux,
    "sd35": _sd35,
}
#: Those whose network has an entry in accuquant/networks/architectures.py.
ENTERED = tuple(PIPELINES)
PIPELINES |= {"chroma": _chroma, "aura-flow": _aura_flow, "sana": _sana, "lumina": _lumina}


def control_net(seed: int = 7, **changes: Any) -> Any:
    """Return a ControlNetModel for `text_unet`; its residuals are not zero, as before any training."""
    config = {
        "in_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (8, 8),
    }
    net: Any = seeded(seed, diffusers.ControlNetModel, **(config | changes))
    zeros = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in zeros:
            layer.weight.normal_(std=0.2, generator=random)
    return net


#: Two levels, so that residuals have two sizes.
_TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def _control(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False)
    parts = _stable_diffusion(folder, scheduler, **_TWO_LEVELS)
    return "StableDiffusionControlNetPipeline", parts | {"controlnet": control_net()}


def _control_two(folder: Path) -> tuple[str, dict[str, Any]]:
    class_name, parts = _control(folder)
    return class_name, parts | {"controlnet": [control_net(), control_net(seed=8)]}


def _control_sdxl(folder: Path) -> tuple[str, dict[str, Any]]:
    _, parts = _sdxl(folder)
    unet = text_unet(**_SDXL_CHANGES, **_TWO_LEVELS)
    return "StableDiffusionXLControlNetPipeline", parts | {
        "unet": unet,
        "controlnet": control_net(**_SDXL_CHANGES),
    }


def _adapter(folder: Path) -> tuple[str, dict[str, Any]]:
    scheduler = diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False)
    parts = _stable_diffusion(folder, scheduler, **_TWO_LEVELS)
    adapter = seeded(9, diffusers.T2IAdapter, 3, [8, 16], 1, 2, "full_adapter")
    return "StableDiffusionAdapterPipeline", parts | {"adapter": adapter}


def _ip_adapter(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a plain one, and write an IP-Adapter and its image encoder into `folder`."""
    from safetensors.torch import save_file

    class_name, parts = _sd_v(folder)
    _, seeing = _variation(folder)
    seeing["image_encoder"].save_pretrained(folder / "image_encoder")
    random = torch.Generator().manual_seed(11)
    shapes = {"image_proj.proj.weight": (64, 16), "image_proj.proj.bias": (64,)}
    crossing = [name for name in parts["unet"].attn_processors if name.endswith("attn2.processor")]
    for k in range(len(crossing)):
        width = parts["unet"].get_submodule(crossing[k].removesuffix(".processor")).to_k.out_features
        for product in ("k", "v"):
            shapes[f"ip_adapter.{2 * k + 1}.to_{product}_ip.weight"] = (width, 16)
    tensors = {name: torch.randn(shape, generator=random) / 4 for name, shape in shapes.items()}
    tensors |= {"image_proj.norm.weight": torch.ones(16), "image_proj.norm.bias": torch.zeros(16)}
    save_file(tensors, folder / "ip_adapter.safetensors")
    return class_name, parts


PIPELINES |= {"control": _control, "control-two": _control_two, "control-sdxl": _control_sdxl}
PIPELINES |= {"adapter": _adapter, "ip-adapter": _ip_adapter}
