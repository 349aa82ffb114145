"""Add the recipe's bias corrections to the biases of the matched layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.export.passes.layer_match import matched_layers
from accuquant.export.passes.matmul_bias import added_bias
from accuquant.graph.constants import constant_array
from accuquant.graph.patch import Patch, dtype_of, take_over
from accuquant.qparams import FloatArray, LayerQParams


class CorrectBiasPass(ir.passes.InPlacePass):
    """Add each layer's `bias_correction` [O] to its bias.

    Rules:
    - Conv, ConvTranspose and Gemm: a new constant takes the place of the bias input, or becomes it.
    - MatMul: an Add behind the node, which later passes merge with a constant bias that follows.
    - Layers without a correction stay as they are.
    Raises ExportError where a bias is not a constant.
    """

    def __init__(self, layers: Mapping[str, LayerQParams]) -> None:
        self.layers = layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        corrected = False
        for node, layer in matched_layers(model.graph, self.layers):
            if layer.bias_correction is not None:
                _correct(model.graph, node, layer.name, layer.bias_correction)
                corrected = True
        return ir.passes.PassResult(model, modified=corrected)


def _correct(graph: ir.Graph, node: ir.Node, name: str, correction: FloatArray) -> None:
    patch = Patch(graph, f"{name}/bias_correction")
    if node.op_type == "MatMul":
        _correct_behind(node, patch, correction)
        return
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_array(old) if old is not None else np.zeros_like(correction)
    if bias is None:
        raise ExportError(
            f"layer '{name}'",
            got="a bias that the graph computes",
            expected="a constant bias",
            remedy="Export the network with torch.onnx.export",
        )
    node.resize_inputs(3)
    dtype = dtype_of(node.outputs[0])
    node.replace_input_with(2, patch.constant((bias.reshape(-1) + correction).astype(dtype), "bias"))


def _correct_behind(node: ir.Node, patch: Patch, correction: FloatArray) -> None:
    output = node.outputs[0]
    found = added_bias(output)
    if found is not None:
        merged = (found.bias + correction).astype(dtype_of(output))
        found.add.replace_input_with(found.side, patch.constant(merged, "bias"))
        return
    users = list(output.uses())
    constant = patch.constant(correction.astype(dtype_of(output)), "bias")
    value = patch.op("Add", [output, constant], name="Add", like=output)
    patch.insert_after(node)
    take_over(patch.graph, output, value, users)
