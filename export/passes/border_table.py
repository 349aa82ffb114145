"""What a shift of a Conv's input adds to its output where the kernel reaches over the border."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.graph.patch import Patch
from accuquant.graph.vocabulary import Role
from accuquant.qparams import FloatArray

_HEIGHT, _WIDTH = 2, 3


def has_border_table(node: ir.Node) -> bool:
    """Return whether the response of `node` to ones depends on a position's distance to the borders alone.

    It does for a Conv with zero padding and stride 1, whatever the image size.
    """
    get = node.attributes
    return (
        node.op_type == "Conv"
        and get.get_string("auto_pad", "NOTSET") == "NOTSET"
        and any(get.get_ints("pads", ()))
        and all(stride == 1 for stride in get.get_ints("strides", (1, 1)) or (1, 1))
    )


def border_table(node: ir.Node, channel_sum: FloatArray) -> FloatArray:
    """Return what ones at the input give at each class of output positions: [O, rows, columns].

    `channel_sum` [O, kh, kw] is the kernel summed over its input channels. With pads (a, b) a row is of
    class min(i, a) * (b + 1) + min(H' - 1 - i, b): its distances to both borders as far as they matter.
    """
    rows, columns = (_inside(node, axis, size) for axis, size in enumerate(channel_sum.shape[1:]))
    return np.asarray(np.einsum("okl,rk,cl->orc", channel_sum, rows, columns))


def _inside(node: ir.Node, axis: int, size: int) -> FloatArray:
    """Return [classes, size]: 1 where a kernel element lies inside the image, for each class."""
    before, after = _pads(node, axis)
    start, end = np.meshgrid(np.arange(before + 1), np.arange(after + 1), indexing="ij")
    offset = np.arange(size) * _dilation(node, axis)
    over_start = offset < before - start.reshape(-1, 1)
    over_end = offset[-1] - offset < after - end.reshape(-1, 1)
    return np.asarray(~(over_start | over_end), np.float64)


class BorderIndex:
    """Makes the class of each output row and column, once for each image size of a graph."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def spread(self, patch: Patch, node: ir.Node, table: ir.Value) -> ir.Value:
        """Return `table` [1, O, rows, columns] as [1, O, H', W'], gathered by the classes of positions.

        TensorRT makes the two Gathers part of the kernel that adds the bias.
        """
        value = table
        for axis, name in ((_HEIGHT, "Rows"), (_WIDTH, "Columns")):
            classes = self._classes(patch, node, axis)
            value = patch.op("Gather", [value, classes], name=name, role=Role.SHIFTED_BIAS, axis=axis)
        return value

    def _classes(self, patch: Patch, node: ir.Node, axis: int) -> ir.Value:
        x = node.inputs[0]
        assert x is not None
        before, after = _pads(node, axis - 2)
        kernel = node.inputs[1].shape  # type: ignore[union-attr]
        assert kernel is not None
        growth = before + after - (int(kernel[axis]) - 1) * _dilation(node, axis - 2)  # type: ignore[arg-type]
        size = x.shape[axis] if x.shape is not None else None
        if isinstance(size, int):
            return _constant_classes(patch, size + growth, before, after)
        named = isinstance(size, ir.SymbolicDim) and size.value is not None
        key = (str(size) if named else node, axis if not named else None, growth, before, after)
        if key not in self._made:
            self._made[key] = _computed_classes(patch, node, axis, growth, before, after)
        return self._made[key]


def _constant_classes(patch: Patch, size: int, before: int, after: int) -> ir.Value:
    index = np.arange(size)
    classes = np.minimum(index, before) * (after + 1) + np.minimum(size - 1 - index, after)
    return patch.shared_constant(
        classes.astype(np.int64), f"accuquant/border_classes_{size}_{before}_{after}"
    )


def _computed_classes(
    patch: Patch, node: ir.Node, axis: int, growth: int, before: int, after: int
) -> ir.Value:
    """Insert the nodes that compute the classes from the image size, right before `node`."""
    x = _before_pair(node)
    early = Patch(patch.graph, f"{patch.prefix}/classes_{'hw'[axis - 2]}")

    def number(value: int) -> ir.Value:
        return early.shared_constant(np.array(value, np.int64), f"accuquant/number_{value}")

    length = early.op("Shape", [x], name="Length", start=axis, end=axis + 1)
    scalar = early.op("Squeeze", [length], name="Scalar")
    size = early.op("Add", [scalar, number(growth)], name="Size")
    index = early.op("Range", [number(0), size, number(1)], name="Index")
    last = early.op("Sub", [size, number(1)], name="Last")
    rest = early.op("Sub", [last, index], name="Rest")
    start = early.op("Min", [index, number(before)], name="Start")
    row = early.op("Mul", [start, number(after + 1)], name="Row")
    end = early.op("Min", [rest, number(after)], name="End")
    classes = early.op("Add", [row, end], name="Classes")
    early.insert_before(node)
    return classes


def _before_pair(node: ir.Node) -> ir.Value:
    """Return the float tensor that the pair before `node` reads: a second reader of DQ would keep it."""
    value = node.inputs[0]
    assert value is not None
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        producer = value.producer()
        if producer is None or producer.op_type != operator:
            break
        value = producer.inputs[0]
        assert value is not None
    return value


def _pads(node: ir.Node, axis: int) -> tuple[int, int]:
    pads = tuple(node.attributes.get_ints("pads", ()))
    half = len(pads) // 2
    return pads[axis], pads[half + axis]


def _dilation(node: ir.Node, axis: int) -> int:
    return (tuple(node.attributes.get_ints("dilations", ())) or (1, 1))[axis]
