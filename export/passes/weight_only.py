"""Store the weights of a float graph in int8: a quarter of the bytes, products in float as before."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from accuquant.graph.patch import Patch, add_tensor
from accuquant.graph.vocabulary import Role
from accuquant.qparams import along_axis, quantize
from accuquant.scales.observer import weight_scale

_BITS = 8
#: Smaller weights keep every bit: they take no room.
_SMALLEST = 256
#: Smaller tables do, too: those of relative positions move all tokens.
_SMALLEST_TABLE = 4096


class WeightOnlyPass(ir.passes.InPlacePass):
    """Replace float32 weights of products, and tables of embeddings, by int8 levels and their scales.

    Rules:
    - MatMul with a constant [I, O]: levels -> DequantizeLinear, one scale an output, with the least squared
      error -> MatMul. Engines multiply in float, so activations lose nothing.
    - Gather of rows of a constant [N, D]: the rows are gathered as levels, and multiplied with their own
      scale: no engine has to widen a whole vocabulary.
    - Small constants, and those that anything else reads, stay as they are.
    - Levels are computed when the file is written.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        changed = False
        for weight in list(model.graph.initializers.values()):
            readers = {(node.op_type, position) for node, position in weight.uses()}
            if readers == {("MatMul", 1)} and _is_matrix(weight, _SMALLEST):
                _dequantize(model.graph, weight)
            elif (
                readers == {("Gather", 0)}
                and _is_matrix(weight, _SMALLEST_TABLE)
                and all(_gathers_rows(node) for node, _ in weight.uses())
            ):
                _gather_levels(model.graph, weight)
            else:
                continue
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _is_matrix(weight: ir.Value, smallest: int) -> bool:
    tensor = weight.const_value
    return (
        tensor is not None
        and weight.dtype == ir.DataType.FLOAT
        and len(tensor.shape) == 2
        and tensor.size >= smallest
        and not weight.is_graph_output()
    )


def _gathers_rows(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() == 0


def _dequantize(graph: ir.Graph, weight: ir.Value) -> None:
    levels, scale = _stored(graph, weight, axis=1)
    patch = Patch(graph, str(weight.name))
    wide = patch.op(
        "DequantizeLinear", [levels, scale], name="DequantizeLinear", role=Role.WEIGHT, like=weight, axis=1
    )
    users = list(weight.uses())
    patch.insert_before(_first(graph, users))
    for user, position in users:
        user.replace_input_with(position, wide)
    del graph.initializers[str(weight.name)]


def _gather_levels(graph: ir.Graph, weight: ir.Value) -> None:
    levels, scale = _stored(graph, weight, axis=0, columns=True)
    for number, (gather, _) in enumerate(list(weight.uses())):
        patch = Patch(graph, f"{weight.name}/{number}")
        indices, output = gather.inputs[1], gather.outputs[0]
        assert indices is not None
        rows = patch.op("Gather", [levels, indices], name="Gather", axis=0)
        cast = patch.op("Cast", [rows], name="Cast", to=ir.DataType.FLOAT)
        scales = patch.op("Gather", [scale, indices], name="Scales", axis=0)
        found = patch.op("Mul", [cast, scales], name="Mul", like=output)
        patch.insert_before(gather)
        found.name, output.name = output.name, found.name  # it may be an output of the graph
        output.replace_all_uses_with(found, replace_graph_outputs=True)
        graph.remove(gather, safe=True)
    del graph.initializers[str(weight.name)]


def _stored(
    graph: ir.Graph, weight: ir.Value, *, axis: int, columns: bool = False
) -> tuple[ir.Value, ir.Value]:
    """Return the levels of `weight` and its scales along `axis`: a vector, or a column [N, 1]."""
    tensor = weight.const_value
    assert tensor is not None
    scale = weight_scale(tensor.numpy(), _BITS, axis)

    def compute() -> ir.TensorProtocol:
        return ir.tensor(quantize(tensor.numpy(), along_axis(scale, 2, axis), _BITS))

    shape = ir.Shape(tensor.shape.numpy())
    name = str(weight.name)
    levels = add_tensor(graph, ir.LazyTensor(compute, dtype=ir.DataType.INT8, shape=shape), f"{name}_levels")
    return levels, add_tensor(graph, ir.tensor(scale[:, None] if columns else scale), f"{name}_scale")


def _first(graph: ir.Graph, users: Iterable[tuple[ir.Node, int]]) -> ir.Node:
    nodes = {node for node, _ in users}
    return next(node for node in graph if node in nodes)
