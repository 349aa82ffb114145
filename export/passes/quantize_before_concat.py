"""Quantize the parts of a concatenation where a layer reads it directly."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.graph.patch import Patch

#: What QuantizeActivationsPass puts before Q that works value by value, with constants or one factor.
_LOWERING = frozenset({"Div", "Add", "Clip"})


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
            if node.op_type == "QuantizeLinear" and not _is_constant(node.inputs[0]):
                moved = _move(model.graph, node) or moved
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=moved)


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _move(graph: ir.Graph, quantize: ir.Node) -> bool:
    prefix = (quantize.name or "").rpartition("/")[0]
    lowering = _lowering(quantize, prefix)
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
    joined = patch.op("Concat", parts, name="Concat", like=source, axis=axis)
    patch.insert_before(quantize)
    quantize.replace_input_with(0, joined)
    return True


def _lowering(quantize: ir.Node, prefix: str) -> list[ir.Node]:
    """Return the nodes that the pair brought along, first to last."""
    found: list[ir.Node] = []
    node = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    while node is not None and node.op_type in _LOWERING and (node.name or "").startswith(f"{prefix}/"):
        found.insert(0, node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return found


def _through(patch: Patch, value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """Apply copies of `nodes`, one after the other, to `value`."""
    like = value
    for node in nodes:
        value = patch.op(node.op_type, [value, *node.inputs[1:]], name=node.op_type, like=like)  # type: ignore[list-item]
        value.type = node.outputs[0].type
    return value
