"""Find the bias of a MatMul, which an Add behind it carries."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from accuquant.graph.constants import constant_array
from accuquant.qparams import FloatArray


@dataclass(frozen=True)
class AddedBias:
    """The constant [O] that the node `add` takes as its input number `side`."""

    add: ir.Node
    side: int
    bias: FloatArray


def bias_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a bias behind a MatMul: [1, 1, O] as far as the rank allows it, else [O].

    ONNX Runtime fuses a bias [O] behind a product of three axes into a Gemm with Reshapes, moves the QDQ
    pair across them and then rejects its own graph from opset 21 on (issue 25526: output_dtype against
    zero_point). Behind a product of two axes, [1, 1, O] would add an axis.
    """
    values = (node.outputs[0], node.inputs[0])
    ranks = [len(value.shape) for value in values if value is not None and value.shape is not None]
    return (1, 1, -1) if ranks and ranks[0] > 2 else (-1,)


def added_bias(output: ir.Value) -> AddedBias | None:
    """Return the constant [O] that the only reader of `output` adds, or None where it is another reader."""
    users = list(output.uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or output.is_graph_output():
        return None
    add, side = users[0].node, 1 - users[0].idx
    other = add.inputs[side]
    bias = constant_array(other) if other is not None else None
    return AddedBias(add, side, bias) if bias is not None and bias.ndim == 1 else None
