"""Turn the bfloat16 part of a graph back into float32, to compare it with another precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


class SinglePrecisionPass(ir.passes.InPlacePass):
    """Make bfloat16 values float32.

    Rules:
    - Constants are converted when the file is written: the values are those that bfloat16 held.
    - A Cast that no longer changes a type goes, but for one that makes a graph output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        constants = [v for v in graph.initializers.values() if v.dtype == ir.DataType.BFLOAT16]
        for value in constants:
            _widen(value)
        nodes = [node for node in graph if _reads_or_writes(node)]
        for node in nodes:
            for output in node.outputs:
                if output.dtype == ir.DataType.BFLOAT16:
                    output.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type == "Cast":
                _drop_idle(node)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(constants or nodes))


def _widen(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name,
    )
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _reads_or_writes(node: ir.Node) -> bool:
    outputs = any(output.dtype == ir.DataType.BFLOAT16 for output in node.outputs)
    return outputs or node.op_type == "Cast"


def _drop_idle(cast: ir.Node) -> None:
    source, output = cast.inputs[0], cast.outputs[0]
    if cast.attributes.get_int("to") == ir.DataType.BFLOAT16:
        cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    if source is None or source.dtype != ir.DataType.FLOAT or output.is_graph_output():
        return
    if cast.attributes.get_int("to") == ir.DataType.FLOAT:
        for use in list(output.uses()):
            use.node.replace_input_with(use.idx, source)
