"""Keep the constants that guard a division against zero while a graph is optimized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from accuquant.graph.constants import constant_array

#: onnxscript's optimizer takes an addend of up to 1e-8 for a zero and removes the addition.
_SMALL = 1e-6


@contextmanager
def small_addends_kept(graph: ir.Graph) -> Iterator[None]:
    """Keep additions of constants like 1e-15 through an optimizer that takes them for zeros.

    Sana divides by a sum of ReLUs + 1e-15: where all of them are zero, 0 / 0 is not 0. Within the block these
    constants are inputs of the graph, of which an optimizer knows nothing.
    """
    held: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for node in graph:
        for index, value in enumerate(node.inputs):
            if node.op_type not in ("Add", "Sub") or value is None:
                continue
            tensor = _small(value, node.outputs[0].dtype)
            if tensor is not None:
                name = f"small_addend_{len(held)}"
                stand_in = ir.Value(
                    name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
                )
                node.replace_input_with(index, stand_in)
                graph.inputs.append(stand_in)
                held.append((stand_in, tensor))
    yield
    for stand_in, tensor in held:
        graph.inputs.remove(stand_in)
        stand_in.const_value = tensor
        graph.register_initializer(stand_in)


def _small(value: ir.Value, dtype: ir.DataType | None) -> ir.TensorProtocol | None:
    """Return one small number that `value` always is, but for zero, or None."""
    array = constant_array(value)
    if array is None or array.size != 1 or not np.issubdtype(array.dtype, np.floating):
        return None
    if not 0 < abs(float(array.reshape(()))) < _SMALL:
        return None
    return ir.tensor(array if dtype is None else array.astype(dtype.numpy()))
