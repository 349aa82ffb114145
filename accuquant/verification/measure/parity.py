"""Layer by layer: the levels in an exported graph against those of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from accuquant import e4m3
from accuquant._util.scratch import scratch_folder
from accuquant.errors import VerificationError
from accuquant.graph.constants import constant_array
from accuquant.graph.neighbours import producer
from accuquant.graph.vocabulary import LAYER_KEY
from accuquant.networks.device import device_of
from accuquant.networks.network import ConditioningTensors, call
from accuquant.qparams import FloatArray, LayerQParams
from accuquant.recipe import Recipe

IntArray = npt.NDArray[np.integer[Any]]
_PREFIX = "accuquant_levels."


@dataclass(frozen=True)
class LayerParity:
    """How many of a layer's input levels differ between graph and simulation, and by how many at most.

    Layers before it count as equal: see `layer_parity`.
    """

    name: str
    elements: int
    differing: int
    max_difference: int

    @property
    def share(self) -> float:
        """The share of elements whose levels differ, 0 to 1."""
        return self.differing / self.elements

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "share": self.share}

    def merge(self, other: LayerParity) -> LayerParity:
        """Return both measurements of one layer as one."""
        return LayerParity(
            self.name,
            self.elements + other.elements,
            self.differing + other.differing,
            max(self.max_difference, other.max_difference),
        )


def layer_parity(
    onnx_path: Path,
    simulated: nn.Module,
    recipe: Recipe,
    sample: Tensor,
    timestep: float,
    *,
    conditioning: ConditioningTensors | None = None,
    engine: str = "onnxruntime",
    invoke: Callable[[nn.Module, Tensor, Tensor, ConditioningTensors], object] = call,
) -> tuple[LayerParity, ...]:
    """Compare the levels that every quantized layer reads in one network call, in the recipe's order.

    A copy of the graph whose QuantizeLinear nodes are outputs runs in `engine`. Then the simulation runs on
    the same `sample` [B, C, H, W]; behind each comparison it goes on with the graph's levels, so that one
    value that float rounding put on the next level counts once, and not in every later layer as well. With
    the lowering "per-group", `onnx_path` is the graph of the timestep's group. `invoke` calls the
    simulation, where that is no denoising network. Raises VerificationError where the graph does not hold
    a layer of the recipe.
    """
    levels = _graph_levels(Path(onnx_path), recipe, sample, timestep, conditioning or {}, engine)
    group = recipe.groups.find(timestep)
    results: dict[str, LayerParity] = {}

    def compare(layer: LayerQParams, x: Tensor) -> tuple[Tensor]:
        scale = layer.activation_scale[group]
        wanted = layer.quantized_input(x.detach().cpu().numpy(), scale)
        measured = levels[layer.name]
        if measured.shape == (1, *x.shape[1:]):  # the graph has one row of what all rows share
            measured = np.broadcast_to(measured, x.shape)
        # of a layer that is called twice, the first call counts
        results.setdefault(layer.name, _compare(layer, measured, wanted))
        return (torch.from_numpy((measured.reshape(x.shape) - layer.zero_point) * scale).to(x),)

    hooks = [
        simulated.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, layer=layer: compare(layer, args[0])
        )
        for name, layer in recipe.layers.items()
    ]
    try:
        with torch.no_grad():
            device = device_of(simulated)
            given = {name: tensor.to(device) for name, tensor in (conditioning or {}).items()}
            invoke(simulated, sample.to(device), torch.tensor(timestep), given)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(results[name] for name in recipe.layers)


@dataclass(frozen=True)
class _Levels:
    """The output of a QuantizeLinear node; `inside` [rank] slices off the border that a Pad put before it."""

    tensor: ir.Value
    inside: tuple[slice, ...]


def _quantized_inputs(graph: ir.Graph, recipe: Recipe) -> dict[str, _Levels]:
    """Return, for each layer of the recipe, the levels that it reads."""
    found: dict[str, _Levels] = {}
    for node in graph:
        name = node.metadata_props.get(LAYER_KEY)
        dequantize = producer(node)
        if name is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize_node = producer(dequantize)
        if quantize_node is not None:
            levels = _Levels(quantize_node.outputs[0], _inside(producer(quantize_node)))
            found.setdefault(name, levels)
    missing = [name for name in recipe.layers if name not in found]
    if missing:
        raise VerificationError(
            f"layer '{missing[0]}'",
            got=f"no quantized node of that name ({len(missing)} of {len(recipe.layers)} missing)",
            expected="a graph with the layers of the recipe",
            remedy="Export again, and compare with the recipe beside the graph",
        )
    return found


def _inside(node: ir.Node | None) -> tuple[slice, ...]:
    """Return the slices that undo a Pad node with constant amounts; () for any other node."""
    value = node.inputs[1] if node is not None and node.op_type == "Pad" else None
    constant = constant_array(value) if value is not None else None
    if constant is None:
        return ()
    amounts = constant.tolist()
    rank = len(amounts) // 2
    return tuple(slice(a, -b or None) for a, b in zip(amounts[:rank], amounts[rank:], strict=True))


def _graph_levels(
    path: Path,
    recipe: Recipe,
    sample: Tensor,
    timestep: float,
    conditioning: ConditioningTensors,
    engine: str,
) -> dict[str, FloatArray]:
    from accuquant.runtime.open_runner import open_runner

    model = ir.load(path)
    outputs = _quantized_inputs(model.graph, recipe)
    for tensor in dict.fromkeys(levels.tensor for levels in outputs.values()):
        _tap(model.graph, tensor)
    feeds = {recipe.signature.sample.name: sample.detach().cpu().numpy()}
    feeds |= {name: value.detach().cpu().numpy() for name, value in conditioning.items()}
    with scratch_folder("parity") as folder:
        tapped = folder / "model.onnx"
        ir.save(model, tapped, external_data="model.data")
        with open_runner(tapped, engine) as runner:
            for spec in runner.input_specs:
                if spec.name == recipe.signature.timestep.name:
                    shape = [extent if isinstance(extent, int) else 1 for extent in spec.shape]
                    feeds[spec.name] = np.full(shape, timestep / recipe.signature.timestep_divisor)
            typed = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.input_specs}
            results = runner.infer(typed)
    return {
        name: results[f"{_PREFIX}{levels.tensor.name}"][levels.inside] for name, levels in outputs.items()
    }


def _tap(graph: ir.Graph, levels: ir.Value) -> None:
    """Make levels an output of the graph.

    As floats: engines return those most reliably, and they hold the levels of either format exactly.
    """
    name = f"{_PREFIX}{levels.name}"
    cast = ir.node("Cast", [levels], {"to": ir.DataType.FLOAT}, name=name)
    cast.outputs[0].name, cast.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    graph.append(cast)
    graph.outputs.append(cast.outputs[0])


def _compare(layer: LayerQParams, measured: FloatArray, wanted: FloatArray) -> LayerParity:
    name = layer.name
    if measured.size != wanted.size:
        raise VerificationError(
            f"layer '{name}'",
            got=f"an activation of shape {measured.shape} in the graph",
            expected=f"{wanted.shape}, as in the simulation",
            remedy="Export again, and compare with the recipe beside the graph",
        )
    places = [_places(layer, levels.reshape(-1)) for levels in (measured, wanted)]
    difference = np.abs(places[0] - places[1])
    return LayerParity(name, wanted.size, int((difference > 0).sum()), int(difference.max(initial=0)))


def _places(layer: LayerQParams, levels: FloatArray) -> IntArray:
    """Return which level of the layer's format each of `levels` [N] is, counted from zero."""
    return e4m3.places(levels) if layer.format == "fp8" else levels.astype(np.int16)
