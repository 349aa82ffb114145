"""Full-size networks with random weights, and recipes from one small forward."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from accuquant.calibration.activations import ActivationSampler
from accuquant.calibration.placement import place
from accuquant.e4m3 import LARGEST, Format
from accuquant.groups import StepGroups
from accuquant.networks.network import call, float_weight, layer_kind, model_hash, quantizable_layers
from accuquant.networks.signature import Signature
from accuquant.pipelines.source import Source
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.scales.fp8_observer import min_max_scale as fp8_min_max_scale
from accuquant.scales.observer import min_max_scale

#: The published configurations, where they differ from the class's defaults.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    },
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "flux": {"guidance_embeds": True},
}
_SHARD_BYTES = 1_000_000_000
_TOKENS = 77


def write_pipeline(
    name: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    full_parts: bool = False,
    **changes: Any,
) -> Path:
    """Write a whole pipeline folder with random weights in `dtype`, a shard at a time, and return it.

    `changes` are changes of the network's configuration. Text encoders and decoder are tiny, but for
    `full_parts` of Stable Diffusion 1.5.
    """
    from large_pipelines import CLASSES, COMPONENT, write_parts

    write_network(CLASSES[name], CONFIGURATIONS[name] | changes, folder / COMPONENT[name], dtype)
    write_parts(name, folder, full=full_parts)
    return folder


def write_network(
    network_class: type[Any], configuration: Mapping[str, Any], part: Path, dtype: torch.dtype
) -> None:
    """Write a network with random weights in `dtype` into the folder `part`, a shard at a time."""
    with torch.device("meta"):
        network = network_class(**configuration)
    network.save_config(part)
    rng = torch.Generator().manual_seed(0)
    shards: list[dict[str, Tensor]] = [{}]
    weight_map: dict[str, str] = {}
    total = 0
    for key, value in network.state_dict().items():
        if sum(t.nbytes for t in shards[-1].values()) > _SHARD_BYTES:
            _save_shard(part, len(shards), shards[-1])
            shards[-1].clear()
            shards.append({})
        shards[-1][key] = _random_weight(key, value, rng).to(dtype)
        weight_map[key] = str(len(shards))
        total += shards[-1][key].nbytes
    _save_shard(part, len(shards), shards[-1])
    for number in range(1, len(shards) + 1):  # the names say how many there are, as diffusers' do
        (part / _shard_name(number)).rename(part / _shard_name(number, len(shards)))
    weight_map = {key: _shard_name(int(shard), len(shards)) for key, shard in weight_map.items()}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _shard_name(number: int, count: int = 0) -> str:
    return f"diffusion_pytorch_model-{number:05d}-of-{count:05d}.safetensors"


def _save_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), folder / _shard_name(number), metadata={"format": "pt"})


def _random_weight(key: str, like: Tensor, rng: torch.Generator) -> Tensor:
    """Return weights whose layers keep the variance of what they get; norms start at one, biases at zero."""
    if like.ndim < 2:
        return torch.ones(like.shape) if key.endswith("weight") else torch.zeros(like.shape)
    fan_in = math.prod(like.shape[1:])
    return torch.randn(like.shape, generator=rng) / math.sqrt(fan_in)


def small_inputs(signature: Signature, *, size: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a sample of `size` x `size` and conditioning, one image."""
    rng = torch.Generator().manual_seed(seed)
    sizes = signature.sizes | {"batch": 1, "height": size, "width": size, "tokens": _TOKENS}
    sample = torch.randn(signature.sample.resolve(sizes), generator=rng)
    conditioning = {s.name: torch.randn(s.resolve(sizes), generator=rng) for s in signature.conditioning}
    return sample, conditioning


@torch.no_grad()
def small_recipe(
    source: Source, *, num_groups: int, size: int = 16, weight_bits: int = 8, levels_of: Format = "int8"
) -> Recipe:
    """Return a recipe of the default layers, 8-bit activations: min-max, one small forward a step group."""
    edges = np.linspace(1000, 0, num_groups + 1)
    sample, conditioning = small_inputs(source.signature, size=size)
    names = _default_layers(source.network)
    sampler = ActivationSampler(names, [1] * num_groups, 0)
    with sampler.watch(source.network):
        for group in range(num_groups):
            sampler.group = group
            call(source.network, sample * (1 + group / num_groups), float(edges[group + 1]), conditioning)
    layers = quantizable_layers(source.network)
    qparams = {
        name: _qparams(
            name,
            layers[name],
            [fp8_min_max_scale(v) if levels_of == "fp8" else min_max_scale(v, 8) for v in groups],
            weight_bits,
            levels_of,
        )
        for name, groups in sampler.samples().items()
    }
    return Recipe(
        StepGroups(tuple(edges)), qparams, source.signature, {}, model_hash=model_hash(source.network)
    )


def made_up_recipe(source: Source, *, num_groups: int) -> Recipe:
    """Return a recipe of the default layers in int8 whose activation scales nobody measured.

    Weights are read one at a time, in float32.
    """
    layers = quantizable_layers(source.network)
    scales = [0.02 * (1 + group) for group in range(num_groups)]
    qparams = {
        name: _qparams(name, layers[name], scales, 8, "int8") for name in _default_layers(source.network)
    }
    edges = tuple(map(float, np.linspace(1000, 0, num_groups + 1)))
    return Recipe(StepGroups(edges), qparams, source.signature, {}, model_hash=model_hash(source.network))


def _default_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the default placement without counting operations, which takes a full-size forward."""
    return place(network, dict.fromkeys(quantizable_layers(network), 1)).quantized


def _qparams(
    name: str, layer: nn.Module, scales: list[float], weight_bits: int, levels_of: Format
) -> LayerQParams:
    kind = layer_kind(layer)
    assert kind is not None
    weight = float_weight(layer)
    axis = WEIGHT_AXIS[kind]
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    limit = np.maximum(weight.max(axis=rest), -weight.min(axis=rest))
    return LayerQParams(
        name,
        kind,
        tuple(weight.shape),
        fingerprint(weight),
        (limit / (LARGEST if levels_of == "fp8" else 2 ** (weight_bits - 1) - 1)).astype(np.float32),
        np.asarray(scales, np.float32),
        weight_bits=weight_bits,
        format=levels_of,
    )


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters in float32."""
    return 4 * sum(parameter.numel() for parameter in network.parameters())


def folder_bytes(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield each file of an exported network with its size."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".onnx", ".onnx_data"):
            yield path.name, path.stat().st_size
