"""Turn a quantized graph back into the float graph that it was, to compare the two."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.graph.constants import constant_array
from accuquant.graph.packed_levels import levels_tensor
from accuquant.graph.patch import Patch, add_tensor, take_over
from accuquant.graph.roles import role_of
from accuquant.graph.vocabulary import Role
from accuquant.qparams import along_axis

#: Nodes of a lowering that change a value, and leave it where they are taken out.
_BYPASSED = (Role.DIVIDE, Role.SHIFT, Role.CLIP, Role.PAD, Role.RESTORE)


class RemovePairsPass(ir.passes.InPlacePass):
    """Take every QDQ pair out of a graph, and what its lowering put around it.

    Rules:
    - Q -> DQ of an activation goes; what read DQ reads what Q read.
    - DQ of a constant becomes the float constant that it computes, rounded as it is.
    - Nodes that say in their metadata that our own lowering put them there go: factors, shifts, clips and
      paddings (a Conv pads by itself again), concatenations of quantized parts, joined projections.
    - A bias that carries a shift stays as it is, a table or a map of them becomes one row: the graph has
      the shape and the cost of the float network, not its values. It is compiled, never run.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        for node in list(graph):
            if node.op_type == "DequantizeLinear":
                _remove_dequantize(graph, node)
        for node in list(graph):
            if node.op_type == "QuantizeLinear":
                _bypass(graph, node)
        for node in list(graph):
            _remove_lowering(graph, node)
        _concatenate_once(graph)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _remove_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    tensor = levels_tensor(node)
    if tensor is None:
        _bypass(graph, node)
        return
    scale = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    assert scale is not None, "the linter refuses a weight whose scale is computed"
    axis = node.attributes.get_int("axis", 1)

    def compute() -> ir.TensorProtocol:
        steps = scale.numpy()
        values = tensor.numpy().astype(steps.dtype)  # of int8, or of an 8-bit float
        one = steps.size == 1  # [] or, from other tools, [1]
        return ir.tensor(values * (steps.reshape(()) if one else along_axis(steps, values.ndim, axis)))

    lazy = ir.LazyTensor(compute, dtype=scale.dtype, shape=ir.Shape(tensor.shape.numpy()))
    name = f"{node.outputs[0].name}_float"
    _replace(graph, node.outputs[0], add_tensor(graph, lazy, name))


def _remove_lowering(graph: ir.Graph, node: ir.Node) -> None:
    role = role_of(node)
    if role in _BYPASSED:
        if role is Role.PAD:
            _pad_in_layer(node)
        _bypass(graph, node)
    elif role is Role.BIAS:
        _plain_bias(graph, node)
    elif role is Role.JOIN and node.op_type == "Split":
        _separate(graph, node)


def _plain_bias(graph: ir.Graph, add: ir.Node) -> None:
    """Let a constant take the place of a bias that the graph computes, or nothing where there was no bias."""
    addend = add.inputs[1]
    if addend is None or role_of(addend.producer()) is not Role.SHIFTED_BIAS:
        return
    row = _first_row(addend)
    if row is None:
        _bypass(graph, add)
    else:
        add.replace_input_with(1, add_tensor(graph, ir.tensor(row), f"{addend.name}_first"))


def _first_row(addend: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return what a computed bias is in the first step group and the first corner; None without a bias."""
    tensor = None if addend is None else ir.convenience.get_const_tensor(addend)
    node = None if addend is None else addend.producer()
    if tensor is not None:
        return np.asarray(tensor.numpy())
    if node is None or role_of(node) is not Role.SHIFTED_BIAS or node.op_type == "Mul":
        return None
    if node.op_type == "Add":  # a map of the borders, and the bias
        return _first_row(node.inputs[1])
    table = _first_row(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    return None if table is None else np.take(table, [0] if axis else 0, axis=axis)


def _concatenate_once(graph: ir.Graph) -> None:
    """Let concatenations of parts that had pairs of their own be the one that they repeat."""
    made: dict[tuple[object, ...], ir.Node] = {}
    for node in list(graph):
        if node.op_type != "Concat":
            continue
        first = made.setdefault((node.inputs, node.attributes.get_int("axis")), node)
        if first is not node and role_of(node) is Role.CONCAT:
            _replace(graph, node.outputs[0], first.outputs[0])


def _separate(graph: ir.Graph, split: ir.Node) -> None:
    """Give each of the joined projections its own bias again, and its readers."""
    value, bias = split.inputs[0], None
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Add":
        bias = constant_array(producer.inputs[1])  # type: ignore[arg-type]
        producer = producer.inputs[0].producer()  # type: ignore[union-attr]
    widths = constant_array(split.inputs[1])  # type: ignore[arg-type]
    assert producer is not None, "JoinProjectionsPass writes Concat -> [Add] -> Split"
    assert widths is not None
    patch, starts = Patch(graph, f"{split.name}/separated"), np.cumsum(widths) - widths
    parts = zip(producer.inputs, split.outputs, starts, widths, strict=True)
    for number, (part, output, start, width) in enumerate(parts):
        assert part is not None
        if bias is not None:
            own = patch.constant(bias[..., start : start + width], f"bias{number}")
            part = patch.op("Add", [part, own], name=f"Add{number}", like=output)
        patch.insert_before(split)
        _replace(graph, output, part)


def _pad_in_layer(pad: ir.Node) -> None:
    """Give the amounts of a Pad [N, C, H, W starts, then ends] back to the Conv that reads it."""
    amounts = ir.convenience.get_const_tensor(pad.inputs[1])  # type: ignore[arg-type]
    assert amounts is not None
    starts, ends = np.split(amounts.numpy(), 2)
    for use in list(pad.outputs[0].uses()):
        use.node.attributes["pads"] = ir.AttrInt64s("pads", [*map(int, starts[2:]), *map(int, ends[2:])])


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    _replace(graph, node.outputs[0], source)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` take the place of `old`, and its name where that is a graph output."""
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output():
            new = _copy(graph, old, new)
        new.type, new.shape = new.type or old.type, new.shape or old.shape
    take_over(graph, old, new, list(old.uses()))


def _copy(graph: ir.Graph, old: ir.Value, new: ir.Value) -> ir.Value:
    """Insert an Identity of `new`, which cannot bear the name of the graph output `old`."""
    identity = ir.node("Identity", [new], name=f"{old.name}/Identity")
    identity.outputs[0].type, identity.outputs[0].shape = new.type, new.shape
    producer = old.producer()
    assert producer is not None
    graph.insert_after(producer, identity)
    return identity.outputs[0]
