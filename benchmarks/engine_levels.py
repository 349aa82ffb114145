"""The int8 levels inside an engine, and what the simulation makes of them layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from accuquant.network import call
from accuquant.qparams import quantize
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import open_runner
from accuquant.verification.parity import LayerParity, quantize_outputs

Levels = dict[str, npt.NDArray[np.int16]]
_PREFIX = "levels."


@dataclass(frozen=True)
class EngineCall:
    """What one engine call computed: each layer's input levels, and the prediction [B, C, H, W]."""

    levels: Levels
    prediction: Tensor


class TappedGraph:
    """A copy of an exported graph that also returns what its QuantizeLinear nodes compute."""

    def __init__(self, path: Path, recipe: Recipe, engine: str, threads: int) -> None:
        model = onnx.load(path)
        self._outputs = quantize_outputs(model, recipe)
        for tensor in sorted(set(self._outputs.values())):
            # engines return float outputs most reliably, and floats hold int8 levels exactly
            node = onnx.helper.make_node("Cast", [tensor], [_PREFIX + tensor], to=onnx.TensorProto.FLOAT)
            model.graph.node.append(node)
            value = onnx.helper.make_tensor_value_info(_PREFIX + tensor, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(value)
        tapped = path.with_name(f"tapped_{path.name}")
        onnx.save(model, tapped, save_as_external_data=True, location=f"{tapped.name}_data")
        self._runner = open_runner(tapped, engine, num_threads=threads)
        self._prediction = recipe.signature.output.name

    def __call__(self, sample: Tensor, timestep: float) -> EngineCall:
        """Run one call on sample [B, C, H, W]."""
        feeds = {"sample": sample.numpy(), "timestep": np.array([timestep], np.int64)}
        results = self._runner.infer(feeds)
        levels = {name: results[_PREFIX + tensor].astype(np.int16) for name, tensor in self._outputs.items()}
        return EngineCall(levels, torch.from_numpy(results[self._prediction]))

    def close(self) -> None:
        """Release the engine."""
        self._runner.deactivate()


@torch.no_grad()
def forced_levels(
    simulated: nn.Module, recipe: Recipe, engine: Levels, sample: Tensor, timestep: float
) -> EngineCall:
    """Run the simulation with every layer's input replaced by the engine's -> its own levels, its output.

    Each difference then arose between two quantized layers. Left alone, a value that float rounding
    moves across the border of a level changes all that follows.
    """
    group = recipe.groups.find(timestep)
    own: Levels = {}

    def replace(name: str, x: Tensor) -> Tensor:
        layer = recipe.layers[name]
        scale = layer.activation_scale[group]
        levels = quantize(x.numpy(), scale, layer.activation_bits, zero_point=layer.zero_point)
        own.setdefault(name, levels.astype(np.int16))
        values = (engine[name].reshape(x.shape) - layer.zero_point).astype(np.float32) * scale
        return torch.from_numpy(values)

    hooks = [
        simulated.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: (replace(name, args[0]),)
        )
        for name in recipe.layers
    ]
    try:
        return EngineCall(own, call(simulated, sample, torch.tensor(timestep)))
    finally:
        for hook in hooks:
            hook.remove()


def compare_levels(measured: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[LayerParity, ...]:
    """Return how many levels differ in each layer, and by how much at most."""
    found = []
    for name, levels in wanted.items():
        difference = np.abs(measured[name].reshape(-1).astype(np.int16) - levels.reshape(-1))
        found.append(
            LayerParity(name, difference.size, int((difference > 0).sum()), int(difference.max(initial=0)))
        )
    return tuple(found)
