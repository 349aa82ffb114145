"""Questions about a node: what it is called, who writes what it reads, who reads what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from accuquant.graph.constants import is_constant


@dataclass(frozen=True)
class Read:
    """One use of a tensor: input number `index` of `node`."""

    node: ir.Node
    index: int


def select(graph: ir.Graph, *operators: str) -> Iterator[ir.Node]:
    """Yield the nodes of these operator types, in the graph's order."""
    return (node for node in graph if node.op_type in operators)


def label(node: ir.Node) -> str:
    """Return the node's name, or what it writes where it has none."""
    return node.name or f"{node.op_type} of '{node.outputs[0].name}'"


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return input number `index`, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer(node: ir.Node, index: int = 0) -> ir.Node | None:
    """Return the node that writes input number `index`, None for initializers and graph inputs."""
    value = input_of(node, index)
    return None if value is None else value.producer()


def readers(node: ir.Node) -> tuple[Read, ...]:
    """Return every use of the node's first output, those in bodies of control flow too."""
    return tuple(Read(user, index) for user, index in node.outputs[0].uses())


def is_activation(node: ir.Node | None) -> bool:
    """Say whether `node` is a DequantizeLinear of something else than a constant."""
    return node is not None and node.op_type == "DequantizeLinear" and not is_constant(input_of(node, 0))


def type_of(value: ir.Value | None) -> ir.DataType:
    """Return the element type of a tensor, UNDEFINED where it cannot be told."""
    if value is None:
        return ir.DataType.UNDEFINED
    tensor = ir.convenience.get_const_tensor(value)
    return (tensor.dtype if tensor is not None else value.dtype) or ir.DataType.UNDEFINED
