"""The graphs that placement.py compares: the float UNet, Model Optimizer's, and AccuQuant's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from workload import load_model

from accuquant.calibration.placement import place
from accuquant.export import write_onnx
from accuquant.export.export_options import Lowering, Precision
from accuquant.export.passes.half_precision import HalfPrecisionPass
from accuquant.export.read.onnx_source import read_model
from accuquant.export.read.trace import trace
from accuquant.export.write.graph_files import save_graphs
from accuquant.groups import StepGroups
from accuquant.networks.network import float_weights, layer_kind, model_hash, quantizable_layers, signature_of
from accuquant.networks.signature import Signature
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.scales.observer import min_max_scale

CANDIDATES = {
    "fp16": "the UNet without QDQ pairs",
    "modelopt": "mtq.INT8_DEFAULT_CFG, torch.onnx.export as documented (TorchScript), then our fp16 pass",
    "same-graph": "AccuQuant's placement on the float graph of that exporter, every layer in int8",
    "all-layers": "the same layers on AccuQuant's own float graph",
    "all-hybrid": "the same, --lowering hybrid: one engine",
    "hybrid": "AccuQuant's default layers, --lowering hybrid: one engine",
    "hybrid-bf16": "the same with --precision bf16 around int8",
    "rescale": "AccuQuant's default layers, --lowering rescale: one engine",
    "per-group": "AccuQuant's default layers, --lowering per-group: an engine for each of two step groups",
}
_GROUPS = StepGroups((1000.0, 500.0, 0.0))
#: What the second group's scale is of the first's: within what `hybrid` shares, and apart for the rest.
_SECOND_GROUP = 0.8


@dataclass(frozen=True)
class Network:
    """A UNet with random weights, its example inputs, and the range that each layer's input had."""

    title: str
    module: nn.Module
    signature: Signature
    inputs: tuple[Tensor, ...]
    scales: dict[str, float]


def load_network(name: str) -> Network:
    """Return the UNet of DDPM on CIFAR-10 ("cifar") or of Stable Diffusion 1.5 ("sd15"), untrained."""
    if name == "cifar":
        source = load_model("cifar")
        return _observed("UNet of DDPM on CIFAR-10", source.network, source.signature)
    torch.manual_seed(0)
    module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    module = module.eval().requires_grad_(False)
    return _observed("UNet of Stable Diffusion 1.5", module, signature_of(module))


def write_float(network: Network, path: Path) -> Path:
    """Write the float graph of fixed sizes."""
    save_graphs(
        {path.name: trace(network.module, network.signature, dynamic=False)}, path.parent, f"{path.name}_data"
    )
    return path


def write_candidate(name: str, network: Network, float_path: Path, folder: Path) -> tuple[Path, int]:
    """Write the graph called `name` into `folder` -> (its path, how many of its kind a model needs)."""
    folder.mkdir()
    path = folder / f"{name}.onnx"
    if name == "fp16":
        return _write_half(float_path, path), 1
    if name == "modelopt":
        return _write_half(_modelopt(network, folder / "fp32"), path), 1
    if name == "same-graph":
        float_path = _torchscript(network, network.module, folder / "fp32")
    every = name in ("same-graph", "all-layers", "all-hybrid")
    chosen = (
        "per-group" if every and name != "all-hybrid" else name.removeprefix("all-").removesuffix("-bf16")
    )
    lowering: Lowering = chosen  # type: ignore[assignment]
    layers = tuple(network.scales) if every else _default_layers(network)
    recipe = _recipe(network, layers)
    precision: Precision = "bf16" if name.endswith("-bf16") else "fp16"
    written = write_onnx(float_path, recipe, path, lowering=lowering, precision=precision)
    graphs = [file for file in written if file.suffix == ".onnx"]
    return graphs[0], len(graphs)


def _observed(title: str, module: nn.Module, signature: Signature) -> Network:
    """Run the network once and note the min-max scale of every layer's input."""
    torch.manual_seed(1)
    inputs = tuple(_example(spec, signature) for spec in signature.inputs)
    scales: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            scales[name] = min_max_scale(arguments[0].flatten()[:100_000].numpy(force=True), 8)

        return hook

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in quantizable_layers(module).items()]
    with torch.no_grad():
        module(*inputs, return_dict=False)
    for handle in hooks:
        handle.remove()
    return Network(title, module, signature, inputs, scales)


def _example(spec: Any, signature: Signature) -> Tensor:
    shape = spec.resolve(signature.sizes | {"batch": 1, "steps": 1})
    if spec.name == "timestep":
        return torch.full(shape, 500, dtype=getattr(torch, spec.dtype))
    return torch.randn(shape)


def _default_layers(network: Network) -> tuple[str, ...]:
    return place(network.module, dict.fromkeys(network.scales, 1)).quantized


def _recipe(network: Network, names: tuple[str, ...]) -> Recipe:
    weights, modules = float_weights(network.module), quantizable_layers(network.module)
    layers = {}
    for name in names:
        kind = layer_kind(modules[name])
        assert kind is not None
        weight = weights[name]
        rest = tuple(axis for axis in range(weight.ndim) if axis != WEIGHT_AXIS[kind])
        layers[name] = LayerQParams(
            name,
            kind,
            tuple(weight.shape),
            fingerprint(weight),
            (np.abs(weight).max(axis=rest) / 127).astype(np.float32),
            np.array([1, _SECOND_GROUP], np.float32) * np.float32(network.scales[name]),
        )
    return Recipe(_GROUPS, layers, network.signature, {}, model_hash(network.module))


def _modelopt(network: Network, folder: Path) -> Path:
    """Quantize a copy with Model Optimizer's default, and export it."""
    import modelopt.torch.quantization as mtq

    def forward(module: nn.Module) -> None:
        with torch.no_grad():
            module(*network.inputs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = mtq.quantize(copy.deepcopy(network.module), mtq.INT8_DEFAULT_CFG, forward)
    return _torchscript(network, quantized, folder)


def _torchscript(network: Network, module: nn.Module, folder: Path) -> Path:
    """Export as Model Optimizer's documentation shows: TorchScript, opset 17."""
    folder.mkdir()
    path = folder / "float.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Positional(module),
            network.inputs,
            str(path),  # a Path would not do above 2 GB
            dynamo=False,
            opset_version=17,
            input_names=[spec.name for spec in network.signature.inputs],
            output_names=[network.signature.output.name],
        )
    return path


class _Positional(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.module(*inputs, return_dict=False)[0]
        return output


def _write_half(source: Path, path: Path) -> Path:
    model = read_model(source, min_opset=21)
    HalfPrecisionPass()(model)
    save_graphs({path.name: model}, path.parent, f"{path.name}_data")
    return path
