"""Turn a graph that was exported in half precision into float32, before it is quantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.errors import ExportError
from accuquant.graph.patch import has_body

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT = ir.DataType.FLOAT
#: Larger constants, which are weights, stay in half precision behind a Cast: they may lie in a mapped file.
_CAST_ABOVE = 65536


class WidenHalfPass(ir.passes.InPlacePass):
    """Make float16 and bfloat16 values float32.

    Rules:
    - Graph inputs and outputs keep their type, with a Cast at the border.
    - Large constants stay as they are stored, and a Cast stands behind them; small ones are converted. Those
      that only a Cast reads were stored in half precision by a float32 graph, and stay too.
    - A Cast that no longer changes a type goes, but for one that makes a graph output.
    - A graph without such values stays as it is.
    Raises ExportError for control flow in half precision.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        if not _computes_in_half(graph):
            return ir.passes.PassResult(model, modified=False)
        outputs = {position: v.dtype for position, v in enumerate(graph.outputs) if v.dtype in _HALVES}
        for constant in list(graph.initializers.values()):
            _widen_constant(graph, constant)
        for value in list(graph.inputs):
            if value.dtype in _HALVES:
                _cast_behind(graph, value)
        for node in list(graph):
            _widen_node(node)
        for position, dtype in outputs.items():
            assert dtype is not None
            _narrow_output(graph, position, dtype)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _computes_in_half(graph: ir.Graph) -> bool:
    """Return whether a node writes half precision, or a graph input has it."""
    return any(value.dtype in _HALVES for value in graph.inputs) or any(
        output.dtype in _HALVES for node in graph for output in node.outputs
    )


def _widen_constant(graph: ir.Graph, value: ir.Value) -> None:
    tensor = value.const_value
    if (
        value.dtype not in _HALVES
        or tensor is None
        or all(use.node.op_type == "Cast" for use in value.uses())
    ):
        return
    if tensor.nbytes > _CAST_ABOVE:
        _cast_behind(graph, value)
        return
    value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(_FLOAT)


def _cast_behind(graph: ir.Graph, value: ir.Value) -> None:
    """Let every reader of `value` read its float32 copy."""
    uses = list(value.uses())
    cast = _cast(value, _FLOAT, f"{value.name}_float")
    graph.insert_before(graph[0], cast)
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/Cast")
    cast.outputs[0].name = name
    cast.outputs[0].type = ir.TensorType(dtype)
    cast.outputs[0].shape = value.shape
    return cast


def _widen_node(node: ir.Node) -> None:
    _check(node)
    for output in node.outputs:
        if output.dtype in _HALVES:
            output.type = ir.TensorType(_FLOAT)
    for name in ("to", "dtype"):  # of Cast, and of operators that make values: RandomNormalLike, EyeLike
        if node.attributes.get_int(name, 0) in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, _FLOAT)
    filled = node.attributes.get_tensor("value", None) if node.op_type == "ConstantOfShape" else None
    if filled is not None and filled.dtype in _HALVES:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.numpy().astype(np.float32)))
    if node.op_type == "Cast":
        _drop_idle(node)


def _drop_idle(cast: ir.Node) -> None:
    source, output = cast.inputs[0], cast.outputs[0]
    idle = source is not None and source.dtype == _FLOAT and cast.attributes.get_int("to") == _FLOAT
    if source is None or not idle or output.is_graph_output():
        return
    for use in list(output.uses()):
        use.node.replace_input_with(use.idx, source)


def _narrow_output(graph: ir.Graph, position: int, dtype: ir.DataType) -> None:
    """Give graph output number `position` its type again, under its name."""
    value = graph.outputs[position]
    if value.dtype == dtype:  # a graph input that is passed on
        return
    name, value.name = str(value.name), f"{value.name}_float"
    cast = _cast(value, dtype, name)
    graph.append(cast)
    graph.outputs[position] = cast.outputs[0]


def _check(node: ir.Node) -> None:
    if has_body(node):
        raise ExportError(
            f"node '{node.name}' ({node.op_type})",
            got="control flow in a graph in half precision",
            expected="a plain graph, or one in float32",
            remedy="Export the network in float32, or without If, Loop and Scan",
        )
