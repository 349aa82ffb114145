"""Find the bias of a MatMul, which an Add behind it carries."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from accuquant.export.layer_match import constant_array
from accuquant.qparams import FloatArray


@dataclass(frozen=True)
class AddedBias:
    """The constant [O] that the node `add` takes as its input number `side`."""

    add: ir.Node
    side: int
    bias: FloatArray


def added_bias(output: ir.Value) -> AddedBias | None:
    """Return the constant [O] that the only reader of `output` adds, or None where it is another reader."""
    users = list(output.uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or output.is_graph_output():
        return None
    add, side = users[0].node, 1 - users[0].idx
    other = add.inputs[side]
    bias = constant_array(other) if other is not None else None
    return AddedBias(add, side, bias) if bias is not None and bias.ndim == 1 else None
