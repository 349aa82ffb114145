"""Quantize the parts of a concatenation where a layer reads it directly."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.graph.patch import Patch
from accuquant.graph.roles import role_of
from accuquant.graph.vocabulary import Role

#: What QuantizeActivationsPass puts before Q that works value by value, with constants or one factor.
_LOWERING = (Role.DIVIDE, Role.SHIFT, Role.CLIP)


class QuantizeBeforeConcatPass(ir.passes.InPlacePass):
    """Put the pair of a layer that reads Concat(parts) on each part as well, with the same scale.

    Rules:
    - Concat(x_i) -> [Div] -> [Add] -> [Clip] -> Q -> DQ becomes [Div] -> [Add] -> [Clip] -> Q -> DQ for each
      part, then Concat -> Q -> DQ: the last pair changes no level, and the layer keeps it.
    - TensorRT then quantizes each part in the kernel that computes it and concatenates int8. Behind a
      concatenation that costs no kernel (its parts are written in place), Q was a kernel of its own.
    - A pair behind a Pad stays where it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        moved = False
        for node in list(model.graph):
            if role_of(node) is Role.QUANTIZE:
                moved = _move(model.graph, node) or moved
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=moved)


def _move(graph: ir.Graph, quantize: ir.Node) -> bool:
    prefix = (quantize.name or "").rpartition("/")[0]
    lowering = _lowering(quantize)
    source = (lowering[0] if lowering else quantize).inputs[0]
    concat = source.producer() if source is not None else None
    dequantize = [user for user, _ in quantize.outputs[0].uses() if user.op_type == "DequantizeLinear"]
    if concat is None or concat.op_type != "Concat" or not dequantize:
        return False
    parts = []
    for number, part in enumerate(concat.inputs):
        assert part is not None
        patch = Patch(graph, f"{prefix}/part{number}")
        parts.append(_through(patch, part, [*lowering, quantize, dequantize[0]]))
        patch.insert_before(quantize)
    patch = Patch(graph, prefix)
    axis = concat.attributes.get_int("axis")
    joined = patch.op("Concat", parts, name="Concat", role=Role.CONCAT, like=source, axis=axis)
    patch.insert_before(quantize)
    quantize.replace_input_with(0, joined)
    return True


def _lowering(quantize: ir.Node) -> list[ir.Node]:
    """Return the nodes that the pair brought along, first to last."""
    found: list[ir.Node] = []
    node = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    while node is not None and role_of(node) in _LOWERING:
        found.insert(0, node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return found


def _through(patch: Patch, value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """Apply copies of `nodes`, one after the other, to `value`."""
    like = value
    for node in nodes:
        inputs = [value, *node.inputs[1:]]
        value = patch.op(node.op_type, inputs, name=node.op_type, role=role_of(node), like=like)  # type: ignore[arg-type]
        value.type = node.outputs[0].type
    return value
