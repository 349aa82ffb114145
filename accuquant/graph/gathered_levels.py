"""Tables of int8 levels whose rows are gathered: the embeddings of a text encoder with int8 weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.graph.patch import add_tensor


def widen_tables(model: ir.Model) -> int:
    """Store every table of int8 levels that nothing but Gather reads as float16 -> how many there were.

    Float16 holds each level exactly. What casts the rows casts them from it; values are widened when the
    model is written.
    """
    graph, count = model.graph, 0
    for table in list(graph.initializers.values()):
        users = list(table.uses())
        if table.dtype != ir.DataType.INT8 or {(n.op_type, at) for n, at in users} != {("Gather", 0)}:
            continue
        readers = {reader.op_type for gather, _ in users for reader, _ in gather.outputs[0].uses()}
        if readers != {"Cast"}:
            continue
        wide = _widened(graph, table)
        for gather, at in users:
            gather.replace_input_with(at, wide)
            gather.outputs[0].dtype = ir.DataType.FLOAT16
        del graph.initializers[str(table.name)]
        count += 1
    return count


def _widened(graph: ir.Graph, table: ir.Value) -> ir.Value:
    tensor = table.const_value
    assert tensor is not None

    def compute() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16))

    lazy = ir.LazyTensor(compute, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()))
    return add_tensor(graph, lazy, f"{table.name}_as_float16")
