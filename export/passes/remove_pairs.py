"""Turn a quantized graph back into the float graph that it was, to compare the two."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.graph.patch import add_tensor, take_over
from accuquant.qparams import along_axis

#: What the lowering of a pair puts beside a layer, under the layer's own name.
_INPUT_NODES = ("Add", "Clip", "Div", "Pad")
_OUTPUT_NODES = ("Mul",)


class RemovePairsPass(ir.passes.InPlacePass):
    """Take every QDQ pair out of a graph, and what its lowering put around it.

    Rules:
    - Q -> DQ of an activation goes; what read DQ reads what Q read.
    - DQ of a constant becomes the float constant that it computes, rounded as it is.
    - The factors, shifts, clips and paddings of our own lowering go; a Conv pads by itself again.
    - A bias that carries a shift stays as it is, a table of them becomes its first row: the graph has the
      shape and the cost of the float network, not its values. It is compiled, never run.
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
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _remove_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    levels = node.inputs[0]
    assert levels is not None
    tensor = ir.convenience.get_const_tensor(levels)
    if tensor is None:
        _bypass(graph, node)
        return
    scale = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    assert scale is not None, "the linter refuses a weight whose scale is computed"
    axis = node.attributes.get_int("axis", 1)

    def compute() -> ir.TensorProtocol:
        steps = scale.numpy()
        values = tensor.numpy().astype(steps.dtype)
        one = steps.size == 1  # [] or, from other tools, [1]
        return ir.tensor(values * (steps.reshape(()) if one else along_axis(steps, values.ndim, axis)))

    lazy = ir.LazyTensor(compute, dtype=scale.dtype, shape=ir.Shape(tensor.shape.numpy()))
    name = f"{node.outputs[0].name}_float"
    _replace(graph, node.outputs[0], add_tensor(graph, lazy, name))


def _remove_lowering(graph: ir.Graph, node: ir.Node) -> None:
    name = node.name or ""
    if name.endswith(tuple(f"/input/{op}" for op in _INPUT_NODES)):
        if node.op_type == "Pad":
            _pad_in_layer(node)
        _bypass(graph, node)
    elif name.endswith(tuple(f"/output/{op}" for op in _OUTPUT_NODES)):
        _bypass(graph, node)
    elif name.endswith("/output/Shifted_Bias"):
        table = ir.convenience.get_const_tensor(node.inputs[0])  # type: ignore[arg-type]
        assert table is not None
        first = ir.tensor(np.asarray(table.numpy()[0]))
        _replace(graph, node.outputs[0], add_tensor(graph, first, f"{node.outputs[0].name}_first"))


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
