"""Let the products that read one quantized tensor (to_q, to_k, to_v) share what follows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from accuquant.export.passes.matmul_bias import bias_shape
from accuquant.graph.constants import constant_array
from accuquant.graph.patch import Patch, dtype_of
from accuquant.graph.roles import role_of
from accuquant.graph.vocabulary import LAYER_KEY, Role
from accuquant.qparams import FloatArray


@dataclass(frozen=True)
class _Tail:
    """What stands behind one product: the step group's factor, the bias [O], and the value behind both."""

    factor: ir.Value | None
    bias: FloatArray | None
    output: ir.Value


class JoinProjectionsPass(ir.passes.InPlacePass):
    """Turn MatMul_i -> [Mul factor] -> [Add bias_i] into Concat(MatMul_i) -> [Mul factor] -> [Add biases] -> Split.

    Rules:
    - The matched MatMuls that read one tensor are joined, if all of them are multiplied by one factor, a
      scalar, or by none. A constant bias goes along; whatever else follows reads the parts.
    - TensorRT computes such products in one kernel, and reads its output in one kernel for each of them.
      Joined, one kernel undoes the scales of all and transposes them for attention.
    - Nodes and weights of the layers stay as they are, and so does every value.
    """  # noqa: E501

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in model.graph:
            if node.op_type == "MatMul" and LAYER_KEY in node.metadata_props:
                readers[node.inputs[0]].append(node)  # type: ignore[index]
        joined = [nodes for nodes in readers.values() if len(nodes) > 1 and _join(model.graph, nodes)]
        if joined:
            RemoveUnusedNodesPass()(model)
            TopologicalSortPass()(model)
        return ir.passes.PassResult(model, modified=bool(joined))


def _join(graph: ir.Graph, nodes: Sequence[ir.Node]) -> bool:
    widths = [_width(node) for node in nodes]
    tails = [_tail(node, width) for node, width in zip(nodes, widths, strict=True)]
    factor = tails[0].factor
    if any(t.factor is not factor or t.output.is_graph_output() for t in tails):
        return False
    like = nodes[0].outputs[0]
    patch = Patch(graph, f"{nodes[0].metadata_props[LAYER_KEY]}/joined")
    value = patch.op("Concat", [node.outputs[0] for node in nodes], name="Concat", role=Role.JOIN, axis=-1)
    if factor is not None:
        value = patch.op("Mul", [value, factor], name="Mul", role=Role.RESTORE)
    if any(tail.bias is not None for tail in tails):
        biases = [np.zeros(w) if t.bias is None else t.bias for t, w in zip(tails, widths, strict=True)]
        bias = np.concatenate(biases).astype(dtype_of(like)).reshape(bias_shape(nodes[0]))
        value = patch.op("Add", [value, patch.constant(bias, "bias")], name="Add", role=Role.JOIN)
    uses = [list(tail.output.uses()) for tail in tails]
    parts = patch.split(value, widths, like=like, role=Role.JOIN)
    for part, tail, old in zip(parts, tails, uses, strict=True):
        part.shape = tail.output.shape
        for user, position in old:
            if user.outputs[0] is not value and user not in patch:
                user.replace_input_with(position, part)
    patch.insert_after(nodes[-1])
    return True


def _width(node: ir.Node) -> int:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return int(weight.shape[-1])  # type: ignore[arg-type]


def _tail(node: ir.Node, width: int) -> _Tail:
    value, factor, bias = node.outputs[0], None, None
    found = _only_reader(value, "Mul")
    if found is not None and _is_factor(_other(found, value)):
        value, factor = found.outputs[0], _other(found, value)
    found = _only_reader(value, "Add")
    added = constant_array(_other(found, value)) if found is not None else None
    if found is not None and added is not None and _is_bias(added, node, width):
        value, bias = found.outputs[0], added.reshape(-1)
    return _Tail(factor, bias, value)


def _is_factor(value: ir.Value) -> bool:
    """Return whether `value` is one number: a constant, or what QuantizeActivationsPass divided by."""
    constant = constant_array(value)
    if constant is not None:
        return constant.size == 1 and constant.ndim <= 1
    return role_of(value.producer()) is Role.FACTOR


def _is_bias(constant: FloatArray, node: ir.Node, width: int) -> bool:
    """Return whether `constant` [O] or [1, ..., 1, O] is a bias behind `node` that adds no axis."""
    return 0 < constant.ndim <= len(bias_shape(node)) and constant.shape[-1] == constant.size == width


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    users = list(value.uses())
    if len(users) != 1 or users[0].node.op_type != op_type or value.is_graph_output():
        return None
    return users[0].node


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    (other,) = [operand for operand in node.inputs if operand is not value]
    assert other is not None
    return other
