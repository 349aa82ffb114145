"""The linter's rule about the axis of per-channel weight scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from accuquant.export.lint.check_graph import GraphView, Violation
from accuquant.graph.neighbours import Read, input_of, label, producer, readers, select
from accuquant.graph.packed_levels import is_unpacking


@dataclass(frozen=True)
class _Axis:
    """The axis that keeps its own scales, in a tensor of this shape."""

    axis: int
    shape: tuple[int, ...]


def weight_axis(view: GraphView) -> Iterator[Violation]:
    """Report per-channel weights whose scales do not follow the output channels of the layer.

    Only a factor of the output channel can be taken out of the int8 sum and applied to its result. With
    any other axis TensorRT builds the engine, but the layer runs in float.
    """
    for node in select(view.graph, "DequantizeLinear"):
        start = _scaled_axis(view, node)
        if start is None:
            continue
        for read, kept in _layers(view, node, start):
            expected = _output_axis(read.node, len(kept.shape))
            if expected is not None and kept.axis != expected:
                yield Violation(
                    "weight-axis",
                    label(node),
                    f"scales follow axis {kept.axis} of the weight {list(kept.shape)} "
                    f"that {read.node.op_type} '{label(read.node)}' reads, "
                    f"expected its output channels, axis {expected}",
                    "Quantize the weight along its output channels, or with one scale",
                )


def _scaled_axis(view: GraphView, node: ir.Node) -> _Axis | None:
    """Return the axis of a constant's per-channel scales; None for one scale, blocks or activations."""
    scale = view.scale(node)
    shape = _shape(node)
    if (
        scale is None
        or scale.ndim != 1
        or scale.size < 2
        or shape is None
        or node.attributes.get_int("block_size", 0) != 0
    ):
        return None
    axis = node.attributes.get_int("axis", 1)
    return _Axis(axis % len(shape), shape) if shape else None


def _shape(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape of the constant that `node` dequantizes, be it quantized in the graph."""
    value, writer = input_of(node, 0), producer(node)
    if writer is not None and (writer.op_type == "QuantizeLinear" or is_unpacking(writer)):
        value = input_of(writer, 0)
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def _layers(view: GraphView, node: ir.Node, kept: _Axis) -> Iterator[tuple[Read, _Axis]]:
    """Follow the weight to what reads it, through nodes that only move or cast it."""
    for read in readers(node):
        moved = _moved(view, read, kept)
        if moved is None:
            yield read, kept
        elif moved.axis >= 0:
            yield from _layers(view, read.node, moved)


def _moved(view: GraphView, read: Read, kept: _Axis) -> _Axis | None:
    """Return the axis after `read`; None where it is a layer, axis -1 where a Reshape splits or merges it."""
    node = read.node
    if node.op_type in ("Cast", "Identity"):
        return kept
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", range(len(kept.shape))[::-1]))
        return _Axis(order.index(kept.axis), tuple(kept.shape[axis] for axis in order))
    if node.op_type == "Reshape" and read.index == 0:
        return _reshaped(view, node, kept)
    return None


def _reshaped(view: GraphView, node: ir.Node, kept: _Axis) -> _Axis:
    target = view.values(input_of(node, 1))
    lost = _Axis(-1, ())
    if target is None or (target == 0).any():
        return lost
    shape = [int(size) for size in target]
    if -1 in shape:
        shape[shape.index(-1)] = math.prod(kept.shape) // -math.prod(shape)
    before, size = math.prod(kept.shape[: kept.axis]), kept.shape[kept.axis]
    for axis, found in enumerate(shape):
        if found == size and math.prod(shape[:axis]) == before:
            return _Axis(axis, tuple(shape))
    return lost


def _output_axis(node: ir.Node, rank: int) -> int | None:
    """Return the axis of the output channels in the second input of `node`, None for other nodes."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) != 0 else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)


RULES = (weight_axis,)
