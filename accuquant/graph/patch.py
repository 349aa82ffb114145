"""Build new nodes and constants and put them beside an existing node of an ONNX graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.graph.vocabulary import ROLE_KEY, Role

#: Operators whose output has the type of their first input, and those that have one type always.
_KEEP_TYPE = frozenset(
    {"Add", "Concat", "Conv", "ConvTranspose", "Div", "Expand", "Gather", "InstanceNormalization", "Min"}
    | {"Mul", "Pad", "Range", "ReduceSum", "Reshape", "Squeeze", "Sub"}
)
_FIXED_TYPE = {"Less": ir.DataType.BOOL, "Shape": ir.DataType.INT64}


class Patch:
    """Collects nodes named under `prefix`, then places them in `graph` in the order they were made.

    Values carry the type and shape of `like`, or the type that follows from the operator, so that whoever
    reads the graph later needs no inference.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self._nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        inputs: list[ir.Value],
        *,
        name: str,
        role: Role | None = None,
        like: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Make the node `prefix/name` and return its output; `like` gives its type and shape.

        `role` says what the node is for, to whoever reads the graph later.
        """
        node = self._made(ir.node(op_type, inputs, attributes, name=f"{self.prefix}/{name}"), role)
        output = node.outputs[0]
        output.name = f"{node.name}_output"
        dtype = attributes.get("to") or _FIXED_TYPE.get(op_type)
        if op_type in _KEEP_TYPE:
            dtype = inputs[0].dtype
        output.type = None if dtype is None else ir.TensorType(dtype)
        if like is not None:
            output.type = None if like.dtype is None else ir.TensorType(like.dtype)
            output.shape = like.shape
        return output

    def split(
        self, value: ir.Value, widths: Sequence[int], *, like: ir.Value, role: Role | None = None
    ) -> list[ir.Value]:
        """Make a Split along the last axis into parts of `widths`; `like` gives their type."""
        sizes = self.constant(np.array(widths, np.int64), "widths")
        name = f"{self.prefix}/Split"
        node = ir.node("Split", [value, sizes], {"axis": -1}, name=name, num_outputs=len(widths))
        self._made(node, role)
        for number, output in enumerate(node.outputs):
            output.name = f"{name}_output{number}"
            output.type = None if like.dtype is None else ir.TensorType(like.dtype)
        return list(node.outputs)

    def _made(self, node: ir.Node, role: Role | None) -> ir.Node:
        if role is not None:
            node.metadata_props[ROLE_KEY] = role.value
        self._nodes.append(node)
        return node

    def __contains__(self, node: ir.Node) -> bool:
        """Return whether `node` was made here and is not placed yet."""
        return node in self._nodes

    def cast(self, value: ir.Value, dtype: np.dtype[Any], name: str) -> ir.Value:
        """Return `value` as `dtype`, by a Cast with the role CAST where it has another float type."""
        wanted = ir.DataType.from_numpy(dtype)
        if dtype_of(value) == dtype:
            return value
        output = self.op("Cast", [value], name=name, role=Role.CAST, like=value, to=wanted)
        output.type = ir.TensorType(wanted)
        return output

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """Register an initializer `prefix/name`, or return the equal one that has that name already."""
        return add_constant(self.graph, array, f"{self.prefix}/{name}")

    def shared_constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """Register an initializer under a name that other patches use for the same values."""
        return add_constant(self.graph, array, name)

    def insert_before(self, node: ir.Node) -> None:
        """Place the collected nodes right before `node`."""
        self.graph.insert_before(node, self._nodes)
        self._nodes = []

    def insert_after(self, node: ir.Node) -> None:
        """Place the collected nodes right after `node`."""
        self.graph.insert_after(node, self._nodes)
        self._nodes = []


def add_constant(graph: ir.Graph, array: npt.NDArray[Any], name: str) -> ir.Value:
    """Register `array` as an initializer of `graph`, or return the equal one that has that name already.

    The name gets a number where another constant has it: two nodes that read one layer's weight may have
    biases of their own.
    """
    wanted, number = name, 0
    while name in graph.initializers:
        if _holds(graph.initializers[name], array):
            return graph.initializers[name]
        number += 1
        name = f"{wanted}_{number}"
    # np.ascontiguousarray would turn a scalar into [1], and TensorRT runs no convolution in int8
    # whose activation scale has an axis.
    return add_tensor(graph, ir.tensor(np.asarray(array, order="C"), name=name), name)


def _holds(value: ir.Value, array: npt.NDArray[Any]) -> bool:
    """Return whether the constant `value` is `array`, with its type and shape."""
    tensor = value.const_value
    if tensor is None or tensor.dtype.numpy() != array.dtype or tuple(tensor.shape) != array.shape:
        return False
    return tensor.numpy().tobytes() == array.tobytes()


def add_tensor(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Register a tensor, possibly a lazy one, as an initializer of `graph`."""
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def take_over(graph: ir.Graph, old: ir.Value, new: ir.Value, uses: Collection[tuple[ir.Node, int]]) -> None:
    """Let `new` replace `old` in `uses`, and as a graph output under the old name."""
    for user, position in uses:
        user.replace_input_with(position, new)
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}_without_bias"
        new.name = name
        graph.outputs[list(graph.outputs).index(old)] = new


def dtype_of(value: ir.Value) -> np.dtype[Any]:
    """Return the numpy type of a float value; float32 where the graph does not say."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return np.dtype(value.dtype.numpy() if value.dtype in halves else np.float32)


def computing_dtype_of(value: ir.Value) -> np.dtype[Any]:
    """Return the type to compute in beside a float value: its own, and float32 beside bfloat16.

    bfloat16 resolves 256 levels no finer than half a level: what a shift, a factor or a bias rounds in it
    is as large as what int8 rounds. It is for what is stored.
    """
    if value.dtype == ir.DataType.BFLOAT16:
        return np.dtype(np.float32)
    return dtype_of(value)


def has_body(node: ir.Node) -> bool:
    """Return whether `node` is control flow: an operator with graphs among its attributes."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attributes.values())
