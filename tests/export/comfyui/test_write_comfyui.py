"""What the file for ComfyUI holds, read as its loader reads it, under names that diffusers reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from tiny_networks import make_network
from tiny_pipelines import save_pipeline
from torch import Tensor, nn

from accuquant.cli.main import main
from accuquant.errors import AccuQuantError, ExportError, UsageError
from accuquant.export.comfyui.places import places_of
from accuquant.export.comfyui.write_comfyui import ComfyuiFile, write_comfyui
from accuquant.groups import StepGroups
from accuquant.networks.network import float_weight, layer_kind, quantizable_layers, signature_of
from accuquant.networks.simulate import quantized_layers, simulate
from accuquant.pipelines.source import Source
from accuquant.prediction_correction import PredictionCorrection
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe

GROUPS = StepGroups((1000.0, 500.0, 0.0))
FAMILIES = ["stable-diffusion-1", "stable-diffusion-2", "sdxl", "flux", "stable-diffusion-3"]


def recipe_of(network: nn.Module, *, skip: tuple[str, ...] = (), kind: Any = "int8") -> Recipe:
    """A recipe of min-max scales for all layers but `skip`, with learned levels and bias corrections."""
    layers, largest, rng = {}, 127 if kind == "int8" else 448, np.random.default_rng(0)
    for name, module in quantizable_layers(network).items():
        layer, weight = layer_kind(module), float_weight(module)
        assert layer is not None
        others = tuple(k for k in range(weight.ndim) if k != WEIGHT_AXIS[layer])
        scale = (np.abs(weight).max(others) / largest).astype(np.float32)
        qparams = LayerQParams(
            name,
            layer,
            weight.shape,
            fingerprint(weight),
            scale,
            np.array([0.5, 2.0], np.float32),
            format=kind,
        )
        if kind == "int8":
            levels = np.clip(qparams.quantized_weight(weight) + rng.integers(-1, 2, weight.shape), -128, 127)
            qparams = _with(qparams, weight_levels=levels.astype(np.int8))
        correction = rng.normal(size=len(scale)).astype(np.float32)
        layers[name] = _with(qparams, bias_correction=correction)
    kept = {name: layer for name, layer in layers.items() if name not in skip}
    return Recipe(GROUPS, kept, signature_of(network), {}, "0" * 64, calibration={"settings": {"steps": 2}})


def _with(layer: LayerQParams, **changes: Any) -> LayerQParams:
    return LayerQParams(**{**vars(layer), **changes})


def source_of(network: nn.Module) -> Source:
    return Source("tiny", Path("tiny"), "Pipeline", "unet", network, None, signature_of(network))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read as ComfyUI 0.38 does: a marker says how weight and weight_scale of its layer make a weight."""
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    markers = {}
    for name in [name for name in held if name.endswith(".comfy_quant")]:
        layer = name.removesuffix(".comfy_quant")
        markers[layer] = json.loads(held.pop(name).numpy().tobytes())
        scale, weight = held.pop(f"{layer}.weight_scale"), held[f"{layer}.weight"]
        given = held.pop(f"{layer}.input_scale", None)
        if markers[layer]["format"] == "int8_tensorwise":
            assert (weight.dtype, scale.shape, given) == (torch.int8, (len(weight), 1), None)
        else:
            assert (weight.dtype, scale.shape) == (torch.float8_e4m3fn, ())
            assert float(given) == 2.0, "the largest of the step groups'"
        held[f"{layer}.weight"] = weight.float() * scale
    assert markers == layers
    return held, markers


def as_diffusers(name: str, network: nn.Module, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors diffusers' names, by diffusers' own reader of single files."""
    if isinstance(network, diffusers.UNet2DConditionModel):
        prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in held.items()}
        result: dict[str, Tensor] = single_file_utils.convert_ldm_unet_checkpoint(prefixed, network.config)
        return result
    if name == "stable-diffusion-3":
        return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(held))
    single = {leaf: held.pop(f"single_blocks.0.linear1.{leaf}") for leaf in ("weight", "bias")}
    wide = {f"single_blocks.0.linear1.{leaf}": torch.zeros(7 * 3072) for leaf in single}  # its only width
    result = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(held | wide)
    for leaf, tensor in single.items():
        parts = tensor.split([16, 16, 16, 64])
        for part, value in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
            result[f"single_transformer_blocks.0.{part}.{leaf}"] = value
    return result


def written(network: nn.Module, recipe: Recipe, path: Path, **choices: Any) -> ComfyuiFile:
    return write_comfyui(source_of(network), recipe, path, **choices)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_are_the_weights_of_the_simulation_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    recipe = recipe_of(network)
    result = written(network, recipe, tmp_path / "network.safetensors", floats="fp32")
    held, markers = read(result.path)
    found = as_diffusers(name, network, dict(held))
    simulated = simulate(network, recipe)
    expected = dict(network.state_dict())
    for layer, module in quantized_layers(simulated).items():
        expected[f"{layer}.weight"] = module.weight
        if f"{layer}.bias" in expected:
            assert module.bias is not None
            expected[f"{layer}.bias"] = module.bias
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0, msg=key)
    assert set(result.quantized) == markers.keys()
    convolutions = {n for n, m in quantizable_layers(network).items() if isinstance(m, nn.Conv2d)}
    assert set(result.in_float) == convolutions
    biasless = {n for n, m in quantizable_layers(network).items() if m.bias is None}
    assert set(result.unbiased) == biasless


def test_floats_are_what_precision_says(tmp_path: Path) -> None:
    network = make_network("stable-diffusion-1")
    recipe = recipe_of(network)
    held, _ = read(written(network, recipe, tmp_path / "n.safetensors").path)
    weight = quantized_layers(simulate(network, recipe))["conv_in"].weight
    assert torch.equal(held["input_blocks.0.0.weight"], weight.half())
    held, _ = read(written(network, recipe, tmp_path / "n.safetensors", floats="bf16").path)
    assert torch.equal(held["input_blocks.0.0.weight"], weight.bfloat16())


def test_a_stack_with_a_part_in_float_is_float_with_the_recipes_rounding(tmp_path: Path) -> None:
    network = make_network("flux")
    recipe = recipe_of(network, skip=("transformer_blocks.0.attn.to_k",))
    result = written(network, recipe, tmp_path / "n.safetensors", floats="fp32")
    held, markers = read(result.path)
    assert "double_blocks.0.img_attn.qkv" not in markers
    q, k, v = held["double_blocks.0.img_attn.qkv.weight"].chunk(3)
    layers = quantized_layers(simulate(network, recipe))
    assert torch.equal(q, layers["transformer_blocks.0.attn.to_q"].weight)
    assert torch.equal(k, network.state_dict()["transformer_blocks.0.attn.to_k.weight"])
    assert torch.equal(v, layers["transformer_blocks.0.attn.to_v"].weight)
    assert result.in_float == ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v")


def test_fp8_has_one_scale_a_weight_and_is_rounded_once_more(tmp_path: Path) -> None:
    network = make_network("flux")
    recipe = recipe_of(network, kind="fp8")
    held, markers = read(written(network, recipe, tmp_path / "n.safetensors").path)
    assert {marker["format"] for marker in markers.values()} == {"float8_e4m3fn"}
    layers = quantized_layers(simulate(network, recipe))
    wanted = torch.cat([layers[f"transformer_blocks.0.attn.to_{part}"].weight for part in "qkv"])
    # half a step of a mantissa of 3 bits, or of the smallest numbers
    smallest = float(wanted.abs().max()) / 448 * 2.0**-10
    torch.testing.assert_close(
        held["double_blocks.0.img_attn.qkv.weight"], wanted, rtol=2.0**-4, atol=smallest * 1.01
    )


def test_names_of_qwen_image_chroma_and_z_image_cover_their_networks() -> None:
    chroma = diffusers.ChromaTransformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(2, 2, 4), approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    z_image = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[2, 2, 4], axes_lens=[16, 16, 16],
    )  # fmt: skip
    for network, reader in (
        (z_image, single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers),
        (chroma, None),
    ):
        keys = list(network.state_dict())
        modules = {key.rpartition(".")[0] for key in keys}
        places = places_of(type(network).__name__, network.config, modules)
        assert len(set(places.values())) == len(modules), "no two modules fall on one place"
        if reader is not None:
            assert _read_back(network, places, reader).keys() == set(keys)
    identity = places_of("QwenImageTransformer2DModel", {}, ["transformer_blocks.0.attn.to_q"])
    assert identity["transformer_blocks.0.attn.to_q"].name == "transformer_blocks.0.attn.to_q"


def _read_back(
    network: nn.Module, places: Any, reader: Callable[..., dict[str, Tensor]]
) -> dict[str, Tensor]:
    stacked: dict[str, list[Tensor]] = {}
    for key, tensor in network.state_dict().items():
        module, _, leaf = key.rpartition(".")
        place = places[module]
        stacked.setdefault(f"{place.name}.{leaf}" if place.name else leaf, []).append(tensor)
    return reader({key: torch.cat(parts) for key, parts in stacked.items()})


def _corrected(network: nn.Module) -> Recipe:
    recipe = recipe_of(network)
    one = np.ones((2, 4), np.float32)
    correction = PredictionCorrection(GROUPS, one, one)
    return Recipe(
        **{**{f: getattr(recipe, f) for f in recipe.__dataclass_fields__}, "correction": correction}
    )


def test_what_comfyui_cannot_carry_is_refused(tmp_path: Path) -> None:
    unet, other = make_network("stable-diffusion-1"), make_network("pixart-sigma")
    path = tmp_path / "network.safetensors"
    with pytest.raises(ExportError, match=r"corrects the network's prediction.*export as ONNX"):
        written(unet, _corrected(unet), path)
    with pytest.raises(ExportError, match=r"PixArtTransformer2DModel: got a family whose checkpoint names"):
        written(other, recipe_of(other), path)
    with pytest.raises(UsageError, match=r"expected a \.safetensors file.*network\.safetensors"):
        written(unet, recipe_of(unet), tmp_path / "network.onnx")
    with pytest.raises(AccuQuantError, match=r"precision 'int4'.*fp16 or bf16 or fp32"):
        written(unet, recipe_of(unet), path, floats="int4")
    consistent = make_network("latent-consistency")
    with pytest.raises(ExportError, match=r"module 'time_embedding.cond_proj'.*no name for it"):
        written(consistent, recipe_of(consistent), path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--lowering", "hybrid"], r"--lowering.*a choice for a graph"),
        (["--whole-pipeline", "--opset", "20"], r"--opset, --whole-pipeline.*a choice for a graph"),
    ],
)
def test_choices_for_a_graph_are_refused_with_target_comfyui(
    options: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.safetensors"
    recipe.touch()
    command = ["export", str(tmp_path), "--recipe", str(recipe), "--target", "comfyui"]
    assert main([*command, "-o", str(tmp_path / "n.safetensors"), *options]) == 2
    assert re.search(match, " ".join(capsys.readouterr().err.split()))


def test_the_command_writes_the_file_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, recipe, path = (
        save_pipeline("sd", tmp_path),
        tmp_path / "r.safetensors",
        tmp_path / "n.safetensors",
    )
    network = diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet")
    recipe_of(network).save(recipe)
    command = ["export", str(pipeline), "--recipe", str(recipe), "--target", "comfyui", "-o", str(path)]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    held, markers = read(path)
    assert f"{len(markers)} linear layers as ComfyUI computes them in 8 bits" in shown
    assert "ComfyUI has no 8-bit convolution (such as conv_in)" in shown
    assert held["input_blocks.0.0.weight"].dtype == torch.float16
