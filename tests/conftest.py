"""Fixtures that more than one test module needs: a tiny pipeline and its parts, small QDQ graphs."""

from __future__ import annotations

import os

# The tensors of these tests are tiny: a second thread costs more than it gives, most of all under xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from torch import nn

    from accuquant.pipelines import Source


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    from accuquant.errors import AccuQuantError
    from accuquant.gpu import find_gpu

    try:
        find_gpu()
    except AccuQuantError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., nn.Module]:
    """Return a function that builds a UNet2DModel of 8x8 images with 14 quantizable layers or so."""

    def make(seed: int = 0, **changes: Any) -> nn.Module:
        import torch
        from diffusers import UNet2DModel

        config = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (8,),
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "down_block_types": ("AttnDownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "add_attention": False,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DModel(**(config | changes)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., nn.Module]) -> Path:
    """Return a folder with a DDIM pipeline around the tiny UNet; do not write into it."""
    from diffusers import DDIMPipeline, DDIMScheduler

    folder = tmp_path_factory.mktemp("tiny-ddpm")
    DDIMPipeline(make_unet(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_source(tiny_pipeline: Path) -> Source:
    """Return the tiny pipeline as load_source reads it; do not change its network."""
    from accuquant.pipelines import load_source

    return load_source(tiny_pipeline)


@pytest.fixture(scope="session")
def make_text_unet() -> Callable[..., nn.Module]:
    """Return a function that builds a UNet2DConditionModel as in Stable Diffusion, 8x8 latents, random."""

    def make(seed: int = 0, **changes: Any) -> nn.Module:
        import torch
        from diffusers import UNet2DConditionModel

        config = {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DConditionModel(**(config | changes)).eval()

    return make


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., tuple[Any, Any]]:
    """Return a function that builds a CLIP tokenizer of single letters and a text encoder, random."""

    def make(folder: Path, *, projection: int = 0, seed: int = 0) -> tuple[Any, Any]:
        import json

        import torch
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
        config = CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=52, eos_token_id=53,
            pad_token_id=53, projection_dim=projection or 16,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
        return tokenizer, encoder.eval()

    return make


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., nn.Module]:
    """Return a function that builds an AutoencoderKL that halves the image, random."""

    def make(latent_channels: int = 4, **changes: Any) -> nn.Module:
        import torch
        from diffusers import AutoencoderKL

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=latent_channels,
                norm_num_groups=4,
                sample_size=16,
                **changes,
            ).eval()

    return make


#: What Stable Diffusion's schedulers are configured with.
SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="session")
def tiny_text_pipeline(
    tmp_path_factory: pytest.TempPathFactory,
    make_text_unet: Callable[..., nn.Module],
    make_clip: Callable[..., tuple[Any, Any]],
    make_vae: Callable[..., nn.Module],
) -> Callable[[str], Path]:
    """Return a function that gives the folder of a pipeline with a text encoder; do not write into it.

    "sd", "sd-v", "inpaint", "pix2pix", "sdxl", "lcm": the real classes, random weights, 16x16 images.
    """
    import diffusers

    def parts(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
        tokenizer, encoder = make_clip(folder)
        common = {"vae": make_vae(), "tokenizer": tokenizer, "text_encoder": encoder}
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pndm = diffusers.PNDMScheduler(**SD_NOISE, skip_prk_steps=True)
        if kind == "sd":
            return "StableDiffusionPipeline", common | checker | {"unet": make_text_unet(), "scheduler": pndm}
        if kind == "sd-v":
            scheduler = diffusers.DDIMScheduler(**SD_NOISE, prediction_type="v_prediction", clip_sample=False)
            return "StableDiffusionPipeline", (
                common | checker | {"unet": make_text_unet(), "scheduler": scheduler}
            )
        if kind == "inpaint":
            unet = make_text_unet(in_channels=9)
            return "StableDiffusionInpaintPipeline", common | checker | {"unet": unet, "scheduler": pndm}
        if kind == "pix2pix":
            euler = diffusers.EulerAncestralDiscreteScheduler(**SD_NOISE)
            unet = make_text_unet(in_channels=8)
            return "StableDiffusionInstructPix2PixPipeline", (
                common | checker | {"unet": unet, "scheduler": euler}
            )
        if kind == "lcm":
            scheduler = diffusers.LCMScheduler(**SD_NOISE, original_inference_steps=50)
            unet = make_text_unet(time_cond_proj_dim=8)
            return "LatentConsistencyModelPipeline", common | checker | {"unet": unet, "scheduler": scheduler}
        second = folder / "second"
        second.mkdir()
        tokenizer_2, encoder_2 = make_clip(second, projection=12, seed=1)
        unet = make_text_unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
        )  # fmt: skip
        euler = diffusers.EulerDiscreteScheduler(**SD_NOISE)
        return "StableDiffusionXLPipeline", common | {
            "tokenizer_2": tokenizer_2, "text_encoder_2": encoder_2, "unet": unet, "scheduler": euler,
        }  # fmt: skip

    made: dict[str, Path] = {}

    def give(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            class_name, components = parts(kind, folder)
            made[kind] = folder / "pipeline"
            getattr(diffusers, class_name)(**components).save_pretrained(made[kind])
        return made[kind]

    return give


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images/ (three PNG files of other shapes) and masks/ (two)."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count, channels in (("images", 3, 3), ("masks", 2, 0)):
        (folder / name).mkdir()
        for k in range(count):
            shape = (20 + k, 24, channels) if channels else (20 + k, 24)
            pixels = rng.integers(0, 256, shape)
            if not channels:
                pixels = 255 * (np.arange(24) > 8 + 4 * k) * np.ones((20 + k, 1), int)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def build_conv(
    path: Path,
    *,
    scale: float = 0.05,
    batch: int | str = "batch",
    size: int | str = 8,
    dynamic_scale: bool = False,
) -> Path:
    """Write `x [batch, 4, size, size] -> QDQ -> int8 Conv -> y`, and return the path.

    `dynamic_scale` makes the activation scale a graph input.
    """
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(scale),
        "zero": np.int8(0),
        "levels": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "weight_scale": np.full(4, 0.01, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], "dequantize"),
        helper.make_node(
            "DequantizeLinear", ["levels", "weight_scale", "weight_zero"], ["w"], "weight", axis=0
        ),
        helper.make_node("Conv", ["x_dq", "w", "bias"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    inputs: dict[str, list[int | str]] = {}
    if dynamic_scale:
        del constants["scale"]
        inputs["scale"] = []
    return save(path, nodes, constants, [batch, 4, size, size], inputs)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: list[int | str],
    inputs: dict[str, list[int | str]] | None = None,
) -> Path:
    """Write a graph from x (and further float `inputs`) to y."""
    values = {"x": shape, **(inputs or {})}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in values.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_conv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the convolution into the test's folder."""

    def make(name: str = "conv.onnx", **changes: object) -> Path:
        return build_conv(tmp_path / name, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def save_graph() -> Callable[..., Path]:
    """Return `save`."""
    return save
