"""Write a GroupNorm as the operators that TensorRT joins to their neighbours, and computes right."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.graph.constants import constant_array
from accuquant.graph.patch import Patch, take_over


class DecomposeNormsPass(ir.passes.InPlacePass):
    """Replace GroupNormalization by Reshape -> InstanceNormalization -> Reshape -> Mul -> Add where that is better.

    Rules:
    - TensorRT has a kernel for GroupNorm + SiLU + Q. A norm without SiLU (before attention) it decomposes
      itself, too late to join the parts: 3 kernels. Written out, the first Reshape joins what computes the
      input and the rest joins Q: 2 kernels.
    - One group: TensorRT computes it as if every channel were a group (10.16, issue 4756). `wrong_only` writes
      out these alone, for whatever engine: who will run the file is not known.
    - Other norms whose scale or bias is computed, or is not one value a channel, stay as they are.
    - Runs before HalfPrecisionPass, which keeps InstanceNormalization in float32.
    """  # noqa: E501

    def __init__(self, *, wrong_only: bool = False) -> None:
        self.wrong_only = wrong_only

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        modified = False
        for node in list(model.graph):
            if node.op_type != "GroupNormalization" or node.domain:
                continue
            if has_one_group(node) or not (self.wrong_only or _before_silu(node)):
                modified = _decompose(model.graph, node) or modified
        return ir.passes.PassResult(model, modified=modified)


def has_one_group(norm: ir.Node) -> bool:
    """Return whether a GroupNormalization has one group, which TensorRT computes wrongly."""
    return norm.attributes.get_int("num_groups", 0) == 1


def _before_silu(node: ir.Node) -> bool:
    return any(user.op_type == "Sigmoid" for user, _ in node.outputs[0].uses())


def _decompose(graph: ir.Graph, node: ir.Node) -> bool:
    x, *affine = node.inputs
    output = node.outputs[0]
    if x is None or x.shape is None:
        return False
    if not has_one_group(node) and not all(_is_per_channel(value, x) for value in affine):
        return False
    groups = node.attributes.get_int("num_groups")
    patch = Patch(graph, f"{node.name}/decomposed")
    rows = patch.constant(np.array([0, groups, -1], np.int64), "rows")
    one, zero = (patch.constant(np.full(groups, v, np.float32), n) for v, n in ((1, "one"), (0, "zero")))
    value = patch.op("Reshape", [x, rows], name="Reshape")
    value.type = output.type
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    value = patch.op(
        "InstanceNormalization", [value, one, zero], name="InstanceNormalization", epsilon=epsilon
    )
    value.type = output.type
    value = patch.op("Reshape", [value, _shape_of(patch, x)], name="Restore", like=output)
    for op_type, name, vector in zip(("Mul", "Add"), ("scale", "bias"), affine, strict=True):
        assert vector is not None
        column = _column(patch, vector, len(x.shape) - 2, name)
        value = patch.op(op_type, [value, column], name=op_type, like=output)
    uses = list(output.uses())
    patch.insert_before(node)
    take_over(graph, output, value, uses)
    graph.remove(node, safe=True)
    return True


def _is_per_channel(vector: ir.Value | None, x: ir.Value) -> bool:
    array = None if vector is None else constant_array(vector)
    return array is not None and x.shape is not None and array.shape == (x.shape[1],)


def _column(patch: Patch, vector: ir.Value, axes: int, name: str) -> ir.Value:
    """Return `vector` [C], or [1] for all channels, as [C, 1, ...] with `axes` axes behind the channels."""
    array = constant_array(vector)
    if array is not None:
        return patch.constant(array.reshape(-1, *[1] * axes), name)
    shape = patch.constant(np.array([-1, *[1] * axes], np.int64), "column")
    column = patch.op("Reshape", [vector, shape], name=f"Column_{name}")
    column.type = vector.type
    return column


def _shape_of(patch: Patch, x: ir.Value) -> ir.Value:
    """Return the shape of `x` as a constant where it is known, else computed."""
    assert x.shape is not None
    if x.shape.is_static():
        return patch.constant(np.array(x.shape.numpy(), np.int64), "shape")
    shape = patch.op("Shape", [x], name="Shape")
    shape.type = ir.TensorType(ir.DataType.INT64)
    return shape
