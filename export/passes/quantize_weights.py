"""Store the weights of the matched layers as int8 or FP8 behind DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.export.passes.layer_match import matched_layers
from accuquant.export.passes.representable import representable
from accuquant.graph.constants import ConstantWeight, constant_weight, reads_transposed
from accuquant.graph.packed_levels import LEVEL_TYPES, levels_tensor
from accuquant.graph.patch import Patch, add_tensor
from accuquant.graph.vocabulary import Role
from accuquant.qparams import FloatArray, LayerQParams, along_axis


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Replace each matched layer's weight by its levels -> DequantizeLinear(axis) with a [O] scale.

    Rules:
    - Levels are int8, or FLOAT8E4M3FN with the format "fp8".
    - The axis is the layer's own (0; 1 for ConvTranspose), 1 where a MatMul or Gemm reads [in, out].
    - Levels are computed when the file is written, a layer at a time: the float weights are neither
      copied nor held by the graph.
    - Nodes that read one layer share one DequantizeLinear. Float weights that nothing reads go.
    - For a `half` type a Conv's weight gets one scale for all channels, a power of two; what is left of
      each channel's scale is channel_factors, which the layer's output is multiplied by. TensorRT writes
      the output of such a convolution in half precision, and in float32 otherwise.
    - A scale that `half` cannot hold becomes the closest one that it can, and the levels those of that scale.
    """

    def __init__(self, layers: Mapping[str, LayerQParams], *, half: ir.DataType | None = None) -> None:
        self.layers = layers
        self.half = half

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        done: dict[tuple[str, bool], ir.Value] = {}
        matches = matched_layers(graph, self.layers)
        for node, layer in matches:
            key = (layer.name, reads_transposed(node))
            if key not in done:
                done[key] = _dequantize(graph, node, layer, self.half)
            node.replace_input_with(1, done[key])
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(matches))


def shared_scale(scales: FloatArray, live: npt.NDArray[np.bool_]) -> float:
    """Return the one scale of a weight whose channels are told apart behind the layer: a power of two.

    It is below the `scales` [O] of its channels, so that no value is larger before the channel's factor than
    behind it. Those that are not `live` [O], whose levels are all zero, do not count whatever their scale
    is: one of them once lifted the scale so far that the others became infinite in float16. Nor do channels
    whose scale is less than 1/64 of the largest, as they are next to zero.
    """
    counted = scales[live].astype(np.float64) if live.any() else np.ones(1)
    smallest = max(float(counted.min()), float(counted.max()) / 64)
    return float(2.0 ** np.floor(np.log2(smallest)))


def channel_factors(node: ir.Node, layer: LayerQParams) -> FloatArray:
    """Return weight_scale [O] / the one scale that the weight of `node` has; 1 for a channel of zeros."""
    levels, scale = _levels_and_scale(node)
    live = _live(levels)
    return np.asarray(np.where(live, layer.weight_scale / np.float32(scale), np.float32(1)))


def _live(levels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return [O]: whether any level of a Conv's output channel is not zero."""
    return np.asarray(levels.reshape(len(levels), -1).any(axis=1))


def has_shared_scale(node: ir.Node) -> bool:
    """Return whether the weight of a quantized `node` has one scale for all channels."""
    dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
    assert dequantize is not None
    scale = dequantize.inputs[1]
    return scale is not None and scale.shape is not None and len(scale.shape) == 0


def dequantized_weight(node: ir.Node) -> FloatArray:
    """Return the float64 weight that a quantized `node` computes with, in the layout that it reads."""
    levels, scale = _levels_and_scale(node)
    weight = levels.astype(np.float64)
    if has_shared_scale(node):
        return weight * float(scale)
    axis = node.inputs[1].producer().attributes.get_int("axis", 1)  # type: ignore[union-attr]
    return weight * along_axis(scale.astype(np.float64), weight.ndim, axis)


def _levels_and_scale(node: ir.Node) -> tuple[npt.NDArray[Any], FloatArray]:
    """Return the levels and the scale of a quantized weight, as the graph holds them."""
    dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
    assert dequantize is not None
    levels = levels_tensor(dequantize)
    scale = ir.convenience.get_const_tensor(dequantize.inputs[1])  # type: ignore[arg-type]
    assert levels is not None
    assert scale is not None
    return _numbers(levels), scale.numpy()


def _numbers(levels: ir.TensorProtocol) -> npt.NDArray[Any]:
    """Return levels as numbers that numpy itself computes with."""
    numbers = np.float32 if levels.dtype == ir.DataType.FLOAT8E4M3FN else np.int8
    return np.asarray(levels.numpy().astype(numbers))


def _dequantize(graph: ir.Graph, node: ir.Node, layer: LayerQParams, half: ir.DataType | None) -> ir.Value:
    weight = constant_weight(node)
    assert weight is not None, "only matched nodes come here"
    transposed = reads_transposed(node)
    patch = Patch(graph, f"{layer.name}/weight{'_transposed' if transposed else ''}")
    attributes: dict[str, Any] = {}
    if half is not None and node.op_type == "Conv":
        lazy = _levels(layer, weight, layer.weight_scale, transposed=False)
        shared = shared_scale(layer.weight_scale, _live(_numbers(lazy)))
        stored = representable(np.array(shared, np.float32), half)
    else:
        stored = representable(layer.weight_scale.astype(np.float32), half)
        lazy = _levels(layer, weight, stored, transposed=transposed)
        attributes["axis"] = 1 - layer.axis if transposed else layer.axis
    levels = add_tensor(graph, lazy, f"{patch.prefix}/levels")
    scale = patch.constant(stored.astype(np.float32), "scale")
    output = patch.op(
        "DequantizeLinear", [levels, scale], name="DequantizeLinear", role=Role.WEIGHT, **attributes
    )
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = levels.shape
    patch.insert_before(node)
    return output


def _levels(
    layer: LayerQParams, weight: ConstantWeight, stored: FloatArray, *, transposed: bool
) -> ir.LazyTensor:
    """Return the levels of `weight`, for the scales [O] that the graph stores."""
    shape = weight.shape[::-1] if transposed else weight.shape
    kind = LEVEL_TYPES[layer.format]

    def compute() -> ir.TensorProtocol:
        levels = layer.quantized_weight(np.asarray(weight.load(), np.float32))
        if not np.array_equal(stored, layer.weight_scale):
            share = along_axis(layer.weight_scale / stored, levels.ndim, layer.axis)
            levels = layer.nearest_levels(layer.level_values(levels) * share)
        levels = np.ascontiguousarray(levels.T if transposed else levels)
        return ir.tensor(levels.view(kind.numpy()))

    return ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(shape))
