"""The names of diffusion transformers: Flux, Chroma, Stable Diffusion 3, Qwen-Image, Z-Image."""

from __future__ import annotations

from typing import Any

from accuquant.export.comfyui.rules import Rule, stacked

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _flux_blocks() -> list[Rule]:
    double, single = r"transformer_blocks\.(\d+)", r"single_transformer_blocks\.(\d+)"
    here, there = r"double_blocks.\1", r"single_blocks.\1"
    return [
        Rule("x_embedder", "img_in"),
        Rule("context_embedder", "txt_in"),
        *stacked(double + r"\.attn\.{}", here + ".img_attn.qkv", _QKV),
        *stacked(double + r"\.attn\.{}", here + ".txt_attn.qkv", _ADDED),
        Rule(double + r"\.attn\.to_out\.0", here + ".img_attn.proj"),
        Rule(double + r"\.attn\.to_add_out", here + ".txt_attn.proj"),
        Rule(double + r"\.attn\.norm_q", here + ".img_attn.norm.query_norm", leaf="scale"),
        Rule(double + r"\.attn\.norm_k", here + ".img_attn.norm.key_norm", leaf="scale"),
        Rule(double + r"\.attn\.norm_added_q", here + ".txt_attn.norm.query_norm", leaf="scale"),
        Rule(double + r"\.attn\.norm_added_k", here + ".txt_attn.norm.key_norm", leaf="scale"),
        Rule(double + r"\.ff\.net\.0\.proj", here + ".img_mlp.0"),
        Rule(double + r"\.ff\.net\.2", here + ".img_mlp.2"),
        Rule(double + r"\.ff_context\.net\.0\.proj", here + ".txt_mlp.0"),
        Rule(double + r"\.ff_context\.net\.2", here + ".txt_mlp.2"),
        *stacked(
            single + r"\.{}",
            there + ".linear1",
            (*(rf"attn\.{part}" for part in _QKV), "proj_mlp"),
        ),
        Rule(single + r"\.attn\.norm_q", there + ".norm.query_norm", leaf="scale"),
        Rule(single + r"\.attn\.norm_k", there + ".norm.key_norm", leaf="scale"),
        Rule(single + r"\.proj_out", there + ".linear2"),
        Rule("proj_out", "final_layer.linear"),
    ]


def flux(config: Any) -> list[Rule]:
    """Return the rules of a FluxTransformer2DModel (Black Forest Labs' flux/model.py)."""
    embedders = {"timestep": "time_in", "text": "vector_in", "guidance": "guidance_in"}
    return [
        *(
            Rule(rf"time_text_embed\.{ours}_embedder\.linear_{k}", f"{theirs}.{layer}")
            for ours, theirs in embedders.items()
            for k, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        *_flux_blocks(),
        Rule(r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.lin"),
        Rule(r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
        Rule(r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
        # the checkpoint has shift before scale, diffusers the other way round
        Rule(r"norm_out\.linear", "final_layer.adaLN_modulation.1", swapped=True),
    ]


def chroma(config: Any) -> list[Rule]:
    """Return the rules of a ChromaTransformer2DModel: Flux, with its modulations from one network."""
    guidance = r"distilled_guidance_layer\."
    return [
        *_flux_blocks(),
        Rule(guidance + r"layers\.(\d+)\.linear_1", r"distilled_guidance_layer.layers.\1.in_layer"),
        Rule(guidance + r"layers\.(\d+)\.linear_2", r"distilled_guidance_layer.layers.\1.out_layer"),
        Rule(guidance + r"norms\.(\d+)", r"distilled_guidance_layer.norms.\1", leaf="scale"),
        Rule(guidance + r"(in_proj|out_proj)", r"distilled_guidance_layer.\1"),
    ]


def sd3(config: Any) -> list[Rule]:
    """Return the rules of an SD3Transformer2DModel: Stable Diffusion 3 and 3.5 (Stability AI's mmdit.py)."""
    block = r"transformer_blocks\.(\d+)"
    image, text = r"joint_blocks.\1.x_block", r"joint_blocks.\1.context_block"
    last = config["num_layers"] - 1
    # the last block's text goes nowhere: of its modulation scale and shift are left, in another order
    last_text = Rule(
        rf"transformer_blocks\.{last}\.norm1_context\.linear",
        f"joint_blocks.{last}.context_block.adaLN_modulation.1",
        swapped=True,
    )
    embedders = {r"timestep": "t_embedder", "text": "y_embedder"}
    return [
        Rule("pos_embed", "", leaf="pos_embed"),
        Rule(r"pos_embed\.proj", "x_embedder.proj"),
        Rule("context_embedder", "context_embedder"),
        *(
            Rule(rf"time_text_embed\.{ours}_embedder\.linear_{k}", f"{theirs}.mlp.{2 * k - 2}")
            for ours, theirs in embedders.items()
            for k in (1, 2)
        ),
        *stacked(block + r"\.attn\.{}", image + ".attn.qkv", _QKV),
        *stacked(block + r"\.attn\.{}", text + ".attn.qkv", _ADDED),
        *stacked(block + r"\.attn2\.{}", image + ".attn2.qkv", _QKV),
        Rule(block + r"\.attn\.to_out\.0", image + ".attn.proj"),
        Rule(block + r"\.attn2\.to_out\.0", image + ".attn2.proj"),
        Rule(block + r"\.attn\.to_add_out", text + ".attn.proj"),
        Rule(block + r"\.(attn2?)\.norm_([qk])", r"joint_blocks.\1.x_block.\2.ln_\3"),
        Rule(block + r"\.attn\.norm_added_([qk])", text + r".attn.ln_\2"),
        last_text,
        Rule(block + r"\.norm1\.linear", image + ".adaLN_modulation.1"),
        Rule(block + r"\.norm1_context\.linear", text + ".adaLN_modulation.1"),
        Rule(block + r"\.ff\.net\.0\.proj", image + ".mlp.fc1"),
        Rule(block + r"\.ff\.net\.2", image + ".mlp.fc2"),
        Rule(block + r"\.ff_context\.net\.0\.proj", text + ".mlp.fc1"),
        Rule(block + r"\.ff_context\.net\.2", text + ".mlp.fc2"),
        Rule(r"norm_out\.linear", "final_layer.adaLN_modulation.1", swapped=True),
        Rule("proj_out", "final_layer.linear"),
    ]


def qwen_image(config: Any) -> list[Rule]:
    """Return the rules of a QwenImageTransformer2DModel: it was published under diffusers' names."""
    return [Rule("(.+)", r"\1")]


def z_image(config: Any) -> list[Rule]:
    """Return the rules of a ZImageTransformer2DModel (Tongyi's Z-Image: one patch of 2 pixels, 1 frame)."""
    attention = r"(.+\.attention)\."
    return [
        *stacked(attention + "{}", r"\1.qkv", _QKV),
        Rule(attention + r"to_out\.0", r"\1.out"),
        Rule(attention + r"norm_([qk])", r"\1.\2_norm"),
        Rule(r"all_final_layer\.2-1\.(.+)", r"final_layer.\1"),
        Rule(r"all_x_embedder\.2-1", "x_embedder"),
        Rule(r"((?:layers|noise_refiner|context_refiner|t_embedder|cap_embedder).+)", r"\1"),
        Rule("", "", leaf=None),
    ]
