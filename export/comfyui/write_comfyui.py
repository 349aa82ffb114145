"""Write the quantized network of a pipeline as the one file that ComfyUI's "Load Diffusion Model" reads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import accuquant
from accuquant._util.files import atomic_write, check_new_file
from accuquant._util.progress import Share
from accuquant.errors import ExportError, UsageError, unknown_name
from accuquant.export.comfyui.packed_layer import MARKERS, PackedWeight, dequantized, pack
from accuquant.export.comfyui.places import Place, check_family, places_of
from accuquant.networks.fold import fold_network
from accuquant.networks.network import float_weight, float_weights, quantizable_layers
from accuquant.networks.stored_weights import named_weights
from accuquant.pipelines.lora import check_loras
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

FloatType = Literal["fp16", "bf16", "fp32"]
_FLOAT_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
#: What ComfyUI calls the tensor that says in JSON how a layer is quantized, and the entry of the header that
#: says it of all layers.
_MARKER, _HEADER = "comfy_quant", "_quantization_metadata"


@dataclass(frozen=True)
class ComfyuiFile:
    """What was written: layers of the checkpoint in int8 or FP8, and those of the recipe that are not.

    `in_float` are the recipe's layers whose weights were rounded by the recipe and are stored as floats: all
    convolutions, because ComfyUI has quantized linear layers alone. `unbiased` are its layers without a bias,
    for whose bias correction the checkpoint has no place.
    """

    path: Path
    quantized: tuple[str, ...]
    in_float: tuple[str, ...]
    unbiased: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.quantized)} linear layers as ComfyUI computes them in 8 bits"]
        if self.in_float:
            lines.append(
                f"{len(self.in_float)} layers with the recipe's weights in floats: ComfyUI has no 8-bit "
                f"convolution (such as {self.in_float[0]})"
            )
        if self.unbiased:
            lines.append(f"{len(self.unbiased)} layers without a bias, whose correction has no place there")
        return "\n".join(lines)


@dataclass
class _Checkpoint:
    """Tensors under their names in the file, and what becomes of ComfyuiFile."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    quantized: list[str] = field(default_factory=list)
    in_float: list[str] = field(default_factory=list)
    unbiased: list[str] = field(default_factory=list)


def write_comfyui(
    source: Source,
    recipe: Recipe,
    output: Path,
    *,
    floats: FloatType = "fp16",
    progress: Share | None = None,
) -> ComfyuiFile:
    """Write the network of `source`, quantized by `recipe`, to the new file `output` (.safetensors).

    Names are those of the family's published checkpoints. A linear layer of an int8 recipe is int8 with a
    scale an output, the recipe's levels bit for bit; of an FP8 recipe E4M3 with one scale, and one for its
    input. Everything else is of the type `floats`. ComfyUI finds scales of int8 activations itself, a row
    at a time: those of the recipe, and its zero-points, are not in the file. Raises RecipeError where the
    recipe belongs to another checkpoint, ExportError for a family without names and a recipe that ComfyUI
    cannot carry.
    """
    say = progress or (lambda _text, _share: None)
    if floats not in _FLOAT_TYPES:
        raise unknown_name("precision", floats, _FLOAT_TYPES)
    check_output(output)
    check_recipe(recipe)
    check_loras(recipe.facts.loras, source.loras)
    source = source.called_as(recipe.signature)
    network = fold_network(source.network, recipe.folds)
    check_family(type(network).__name__)
    say("checking the recipe", 0.0)
    recipe.check_weights(float_weights(network))
    say("packing weights", 0.2)
    checkpoint = pack_network(network, recipe, _FLOAT_TYPES[floats])
    say("writing", 0.8)
    _save(checkpoint, recipe, output)
    say("done", 1.0)
    return ComfyuiFile(
        Path(output),
        tuple(checkpoint.quantized),
        tuple(checkpoint.in_float),
        tuple(checkpoint.unbiased),
    )


def check_output(output: Path) -> None:
    """Raise UsageError unless `output` can become a .safetensors file."""
    check_new_file("-o", output)
    if Path(output).suffix.lower() != ".safetensors":
        raise UsageError(
            f"-o '{output}'",
            got="another ending with --target comfyui",
            expected="a .safetensors file",
            remedy=f"Give -o {Path(output).with_suffix('.safetensors')}",
        )


def check_recipe(recipe: Recipe) -> None:
    """Raise ExportError where images would depend on what a file of weights cannot hold."""
    if recipe.correction is not None:
        raise ExportError(
            "--target comfyui",
            got="a recipe that corrects the network's prediction, at each step by another factor",
            expected="a recipe of weights and scales",
            remedy="Calibrate with another --method, or export as ONNX",
        )


def pack_network(network: torch.nn.Module, recipe: Recipe, floats: torch.dtype) -> _Checkpoint:
    """Return the tensors of `network`, already folded, quantized by `recipe`, by their names in the file."""
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in named_weights(network).items():
        module, _, leaf = key.rpartition(".")
        tensors[module][leaf] = tensor
    config = getattr(network, "config", {})
    places = places_of(type(network).__name__, config, tensors)
    stacks: dict[str, dict[int, str]] = defaultdict(dict)
    for module, place in places.items():
        stacks[place.name + (f".{place.leaf}" if place.leaf else "")][place.index] = module
    checkpoint, layers = _Checkpoint(), quantizable_layers(network)
    for name, parts in stacks.items():
        modules = [parts[k] for k in sorted(parts)]
        place = places[modules[0]]
        if len(modules) != place.of:
            raise ExportError(
                f"'{name}' of {type(network).__name__}",
                got=f"{len(modules)} of its {place.of} parts: {', '.join(modules)}",
                expected="all of them",
                remedy="Export it as ONNX: leave --target comfyui out",
            )
        _add(checkpoint, place, modules, tensors, layers, recipe, floats)
    return checkpoint


def _add(
    checkpoint: _Checkpoint,
    place: Place,
    modules: list[str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    layers: Mapping[str, torch.nn.Module],
    recipe: Recipe,
    floats: torch.dtype,
) -> None:
    """Add what the modules that make up `place` hold."""
    known = [recipe.layers[module] for module in modules if module in recipe.layers]
    packed = len(known) == len(modules) and all(layer.kind == "linear" for layer in known)
    for leaf in tensors[modules[0]]:
        values = []
        for module in modules:
            value, layer = tensors[module][leaf], recipe.layers.get(module)
            if layer is not None and leaf == "weight" and not packed:
                value = torch.from_numpy(dequantized(layer, float_weight(layers[module])))
                checkpoint.in_float.append(module)
            if layer is not None and leaf == "bias" and layer.bias_correction is not None:
                value = value.float().cpu() + torch.from_numpy(layer.bias_correction)
            values.append(value)
        if packed and leaf == "weight":
            weights = [float_weight(layers[module]) for module in modules]
            _add_packed(checkpoint, place, pack(known, weights), known[0].format)
        else:
            whole = torch.cat([value.detach().cpu() for value in values]) if len(values) > 1 else values[0]
            whole = _ordered(whole.detach().cpu(), place)
            name = place.leaf or leaf
            key = f"{place.name}.{name}" if place.name else name
            checkpoint.tensors[key] = whole.to(floats) if whole.is_floating_point() else whole
    checkpoint.unbiased += [
        layer.name
        for layer in known
        if layer.bias_correction is not None and "bias" not in tensors[layer.name]
    ]


def _add_packed(checkpoint: _Checkpoint, place: Place, weight: PackedWeight, kind: str) -> None:
    """Add a weight in levels with its scales, and the marker that says what they are."""
    levels, scale = _ordered(torch.from_numpy(weight.levels), place), torch.from_numpy(weight.scale)
    stored = {
        "weight": levels.view(torch.float8_e4m3fn) if kind == "fp8" else levels,
        "weight_scale": scale if scale.ndim == 0 else _ordered(scale, place),
        _MARKER: torch.tensor(list(_marker(kind)), dtype=torch.uint8),
    }
    if weight.input_scale is not None:
        stored["input_scale"] = torch.from_numpy(weight.input_scale)
    checkpoint.tensors |= {f"{place.name}.{leaf}": tensor for leaf, tensor in stored.items()}
    checkpoint.quantized.append(place.name)


def _marker(kind: str) -> bytes:
    return json.dumps({"format": MARKERS[kind]}).encode()


def _ordered(tensor: Tensor, place: Place) -> Tensor:
    """Return `tensor` [O, ...] with its outputs as the checkpoint has them."""
    if not place.swapped:
        return tensor
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _save(checkpoint: _Checkpoint, recipe: Recipe, output: Path) -> None:
    from safetensors.torch import save_file

    marker = json.loads(_marker(recipe.format))
    header = {"format_version": "1.0", "layers": dict.fromkeys(checkpoint.quantized, marker)}
    metadata = {
        _HEADER: json.dumps(header),
        "accuquant_version": accuquant.__version__,
        "accuquant_recipe": recipe.sha256(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    with atomic_write(output) as temporary:
        save_file(tensors, temporary, metadata=metadata)
