"""Store the weights of the matched layers as int8 behind DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.export.passes.layer_match import matched_layers
from accuquant.graph.constants import ConstantWeight, constant_weight, reads_transposed
from accuquant.graph.patch import Patch, add_tensor
from accuquant.graph.vocabulary import Role
from accuquant.qparams import FloatArray, LayerQParams, along_axis


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Replace each matched layer's weight by int8 levels -> DequantizeLinear(axis) with a [O] scale.

    Rules:
    - The axis is the layer's own (0; 1 for ConvTranspose), 1 where a MatMul or Gemm reads [in, out].
    - Levels are computed when the file is written, a layer at a time: the float weights are neither
      copied nor held by the graph.
    - Nodes that read one layer share one DequantizeLinear. Float weights that nothing reads go.
    - `scalar_conv_scales`: a Conv's weight gets one scale for all channels, a power of two; what is left of
      each channel's scale is channel_factors, which the layer's output is multiplied by. TensorRT writes
      the output of such a convolution in half precision, and in float32 otherwise.
    """

    def __init__(self, layers: Mapping[str, LayerQParams], *, scalar_conv_scales: bool = False) -> None:
        self.layers = layers
        self.scalar_conv_scales = scalar_conv_scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        done: dict[tuple[str, bool], ir.Value] = {}
        matches = matched_layers(graph, self.layers)
        for node, layer in matches:
            key = (layer.name, reads_transposed(node))
            if key not in done:
                scalar = self.scalar_conv_scales and node.op_type == "Conv"
                done[key] = _dequantize(graph, node, layer, scalar=scalar)
            node.replace_input_with(1, done[key])
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(matches))


def shared_scale(layer: LayerQParams) -> float:
    """Return the one scale of a weight whose channels are told apart behind the layer: a power of two.

    It is below the channels' scales, so that no value is larger before the channel's factor than behind
    it; channels whose scale is less than 1/64 of the largest do not count, as they are next to zero.
    """
    scales = layer.weight_scale.astype(np.float64)
    smallest = max(float(scales.min()), float(scales.max()) / 64)
    return float(2.0 ** np.floor(np.log2(smallest)))


def channel_factors(layer: LayerQParams) -> FloatArray:
    """Return weight_scale / shared_scale [O]."""
    return np.asarray(layer.weight_scale / np.float32(shared_scale(layer)))


def has_shared_scale(node: ir.Node) -> bool:
    """Return whether the weight of a quantized `node` has one scale for all channels."""
    dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
    assert dequantize is not None
    scale = dequantize.inputs[1]
    return scale is not None and scale.shape is not None and len(scale.shape) == 0


def dequantized_weight(node: ir.Node) -> FloatArray:
    """Return the float64 weight that a quantized `node` computes with, in the layout that it reads."""
    dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
    assert dequantize is not None
    levels, scale = (ir.convenience.get_const_tensor(value) for value in dequantize.inputs[:2])  # type: ignore[arg-type]
    assert levels is not None
    assert scale is not None
    axis = dequantize.attributes.get_int("axis", 1)
    weight = levels.numpy().astype(np.float64)
    if has_shared_scale(node):
        return weight * float(scale.numpy())
    return weight * along_axis(scale.numpy().astype(np.float64), weight.ndim, axis)


def _dequantize(graph: ir.Graph, node: ir.Node, layer: LayerQParams, *, scalar: bool) -> ir.Value:
    weight = constant_weight(node)
    assert weight is not None, "only matched nodes come here"
    transposed = reads_transposed(node)
    patch = Patch(graph, f"{layer.name}/weight{'_transposed' if transposed else ''}")
    levels = add_tensor(graph, _levels(layer, weight, transposed=transposed), f"{patch.prefix}/levels")
    if scalar:
        scale = patch.constant(np.array(shared_scale(layer), np.float32), "scale")
        axis = None
    else:
        scale = patch.constant(layer.weight_scale.astype(np.float32), "scale")
        axis = 1 - layer.axis if transposed else layer.axis
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    output = patch.op(
        "DequantizeLinear", [levels, scale], name="DequantizeLinear", role=Role.WEIGHT, **attributes
    )
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = levels.shape
    patch.insert_before(node)
    return output


def _levels(layer: LayerQParams, weight: ConstantWeight, *, transposed: bool) -> ir.LazyTensor:
    shape = weight.shape[::-1] if transposed else weight.shape

    def compute() -> ir.TensorProtocol:
        levels = layer.quantized_weight(np.asarray(weight.load(), np.float32))
        return ir.tensor(np.ascontiguousarray(levels.T if transposed else levels))

    return ir.LazyTensor(compute, dtype=ir.DataType.INT8, shape=ir.Shape(shape))
