"""The linter's rule about the axis of per-channel weight scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from accuquant.export.lint.check_graph import GraphView, Read, Violation, attribute, input_name, label

_WEIGHT_INPUT = 1


@dataclass(frozen=True)
class _Axis:
    """The axis that keeps its own scales, in a tensor of this shape."""

    axis: int
    shape: tuple[int, ...]


def weight_axis(graph: GraphView) -> Iterator[Violation]:
    """Report per-channel weights whose scales do not follow the output channels of the layer.

    Only a factor of the output channel can be taken out of the int8 sum and applied to its result. With
    any other axis TensorRT builds the engine, but the layer runs in float.
    """
    for node in graph.select("DequantizeLinear"):
        start = _scaled_axis(graph, node)
        if start is None:
            continue
        for read, kept in _layers(graph, node, start):
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


def _scaled_axis(graph: GraphView, node: onnx.NodeProto) -> _Axis | None:
    """Return the axis of a constant's per-channel scales; None for one scale, blocks or activations."""
    scale = graph.scale(node)
    shape = _shape(graph, input_name(node, 0))
    if (
        scale is None
        or scale.ndim != 1
        or scale.size < 2
        or shape is None
        or attribute(node, "block_size", 0)
    ):
        return None
    axis = int(attribute(node, "axis", 1))
    return _Axis(axis % len(shape), shape) if shape else None


def _shape(graph: GraphView, name: str) -> tuple[int, ...] | None:
    """Return the shape of a constant, or of one that QuantizeLinear quantizes in the graph."""
    producer = graph.producers.get(name)
    if name not in graph.constants and producer is not None and producer.op_type == "QuantizeLinear":
        name = input_name(producer, 0)
    tensor = graph.constants.get(name)
    return None if tensor is None else tuple(tensor.dims)


def _layers(graph: GraphView, node: onnx.NodeProto, kept: _Axis) -> Iterator[tuple[Read, _Axis]]:
    """Follow the weight to what reads it, through nodes that only move or cast it."""
    for read in graph.readers(node):
        moved = _moved(graph, read, kept)
        if moved is None:
            yield read, kept
        elif moved.axis >= 0:
            yield from _layers(graph, read.node, moved)


def _moved(graph: GraphView, read: Read, kept: _Axis) -> _Axis | None:
    """Return the axis after `read`; None where it is a layer, axis -1 where a Reshape splits or merges it."""
    node = read.node
    if node.op_type in ("Cast", "Identity"):
        return kept
    if node.op_type == "Transpose":
        order = list(attribute(node, "perm", range(len(kept.shape))[::-1]))
        return _Axis(order.index(kept.axis), tuple(kept.shape[axis] for axis in order))
    if node.op_type == "Reshape" and read.index == 0:
        return _reshaped(graph, node, kept)
    return None


def _reshaped(graph: GraphView, node: onnx.NodeProto, kept: _Axis) -> _Axis:
    target = graph.values(input_name(node, 1))
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


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Return the axis of the output channels in the second input of `node`, None for other nodes."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)


RULES = (weight_axis,)
