"""Store the weights of the matched layers as int8 behind DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.export.layer_match import ConstantWeight, constant_weight, matched_layers, reads_transposed
from accuquant.export.patch import Patch, add_tensor
from accuquant.qparams import FloatArray, LayerQParams, along_axis


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Replace each matched layer's weight by int8 levels -> DequantizeLinear(axis) with a [O] scale.

    Rules:
    - The axis is the layer's own (0; 1 for ConvTranspose), 1 where a MatMul or Gemm reads [in, out].
    - Levels are computed when the file is written, a layer at a time: the float weights are neither
      copied nor held by the graph.
    - Nodes that read one layer share one DequantizeLinear. Float weights that nothing reads go.
    """

    def __init__(self, layers: Mapping[str, LayerQParams]) -> None:
        self.layers = layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        done: dict[tuple[str, bool], ir.Value] = {}
        matches = matched_layers(graph, self.layers)
        for node, layer in matches:
            key = (layer.name, reads_transposed(node))
            if key not in done:
                done[key] = _dequantize(graph, node, layer)
            node.replace_input_with(1, done[key])
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(matches))


def dequantized_weight(node: ir.Node) -> FloatArray:
    """Return the float64 weight that a quantized `node` computes with, in the layout that it reads."""
    dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
    assert dequantize is not None
    levels, scale = (ir.convenience.get_const_tensor(value) for value in dequantize.inputs[:2])  # type: ignore[arg-type]
    assert levels is not None
    assert scale is not None
    axis = dequantize.attributes.get_int("axis", 1)
    weight = levels.numpy().astype(np.float64)
    return weight * along_axis(scale.numpy().astype(np.float64), weight.ndim, axis)


def _dequantize(graph: ir.Graph, node: ir.Node, layer: LayerQParams) -> ir.Value:
    weight = constant_weight(node)
    assert weight is not None, "only matched nodes come here"
    transposed = reads_transposed(node)
    patch = Patch(graph, f"{layer.name}/weight{'_transposed' if transposed else ''}")
    levels = add_tensor(graph, _levels(layer, weight, transposed=transposed), f"{patch.prefix}/levels")
    scale = patch.constant(layer.weight_scale.astype(np.float32), "scale")
    axis = 1 - layer.axis if transposed else layer.axis
    output = patch.op("DequantizeLinear", [levels, scale], name="DequantizeLinear", axis=axis)
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
