"""Turn the float32 part of a graph into float16 or bfloat16, except where that loses what matters."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes.common import RemoveUnusedNodesPass

from accuquant.errors import ExportError
from accuquant.export.passes.representable import LIMITS, representable
from accuquant.graph.infer_types import infer_types, untyped_nodes
from accuquant.graph.patch import add_tensor, has_body, take_over
from accuquant.graph.vocabulary import LAYER_OPS

#: Ops whose inner sums or exponentials overflow or lose digits in float16.
_KEPT_OPS = frozenset(
    {"Softmax", "LogSoftmax", "InstanceNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Exp", "Log"}
    | {"Sin", "Cos", "Range", "CumSum", "Erf"}
)
#: The sinusoid of the timestep: float16 cannot tell 999 from 999.4, so its arguments stay float32 too.
_SINUSOID_OPS = ("Sin", "Cos")
#: What may stand between the last layer and the output.
_MOVES = ("Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
#: Inputs that the ONNX specification fixes at float32 whatever the data is.
_KEPT_INPUTS = {"Resize": (1, 2)}


class HalfPrecisionPass(ir.passes.InPlacePass):
    """Make float32 values `half`: float16 or bfloat16.

    Rules:
    - Graph inputs and outputs keep their type, with a Cast at the border where it is not `half`.
    - Softmax, decomposed normalizations, and all that feeds Sin or Cos stay float32 between Casts.
      GroupNormalization and LayerNormalization take float16: their statistics are float32 anyway
      (stash_type = 1).
    - With bfloat16, which has 8 bits of precision where float16 has 11, the first convolution and the
      last layer stay float32, unless they are quantized: what they round is in every image. So do
      operators for which ONNX has no bfloat16, such as Einsum.
    - Constants are converted when the file is written. Too large values become the largest float16;
      a positive quantization scale never becomes zero.
    - Runs before the activations are quantized: their scales then get the type of the tensor.
    Raises ExportError for control flow, and for a tensor whose type cannot be inferred.
    """

    def __init__(self, half: ir.DataType = ir.DataType.FLOAT16) -> None:
        self.half = half

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        infer_types(model)
        self._graph = model.graph
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._halves: dict[ir.Value, ir.Value] = {}
        self._floats = [v.dtype == ir.DataType.FLOAT for v in self._graph.outputs]
        kept = _kept_nodes(self._graph)
        if self.half == ir.DataType.BFLOAT16:
            opset = model.opset_imports[""]
            kept |= {node for node in self._graph if not _takes_bfloat16(node, opset)}
            kept |= _border_layers(self._graph)
        for node in list(self._graph):
            self._check(node)
        for node in untyped_nodes(self._graph):
            raise _untyped(node)
        for node in list(self._graph):
            wanted = ir.DataType.FLOAT if node in kept else self.half
            self._convert_inputs(node, wanted)
            if wanted == self.half:
                self._convert_outputs(node)
            _drop_idle(self._graph, node)
        self._restore_outputs()
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def _convert_inputs(self, node: ir.Node, wanted: ir.DataType) -> None:
        for position, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, self.half):
                continue
            fixed = position in _KEPT_INPUTS.get(node.op_type, ())
            target = ir.DataType.FLOAT if fixed else wanted
            if node.op_type == "Cast" or value.dtype == target:
                continue
            node.replace_input_with(position, self._as(value, target, node))

    def _as(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        if value.is_initializer() and dtype == self.half:
            return self._half(value, is_scale=user.op_type == "DequantizeLinear")
        if (value, dtype) not in self._casts:
            name = f"{value.name}_{'half' if dtype == self.half else 'float'}"
            cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/Cast")
            cast.outputs[0].name = name
            cast.outputs[0].type = ir.TensorType(dtype)
            cast.outputs[0].shape = value.shape
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], cast)
            else:
                self._graph.insert_after(producer, cast)
            self._casts[value, dtype] = cast.outputs[0]
        return self._casts[value, dtype]

    def _half(self, value: ir.Value, *, is_scale: bool) -> ir.Value:
        if value not in self._halves:
            tensor = value.const_value
            assert tensor is not None

            def compute() -> ir.TensorProtocol:
                array = tensor.numpy()
                if is_scale:
                    array = representable(array, self.half)
                else:
                    array = np.clip(array, -LIMITS[self.half][1], LIMITS[self.half][1])
                return ir.tensor(array.astype(self.half.numpy()))

            lazy = ir.LazyTensor(compute, dtype=self.half, shape=ir.Shape(tensor.shape.numpy()))
            self._halves[value] = add_tensor(self._graph, lazy, f"{value.name}_half")
        return self._halves[value]

    def _convert_outputs(self, node: ir.Node) -> None:
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", self.half)
        filled = node.attributes.get_tensor("value", None) if node.op_type == "ConstantOfShape" else None
        if filled is not None and filled.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor(
                "value", ir.tensor(filled.numpy().astype(self.half.numpy()))
            )
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(self.half)

    def _restore_outputs(self) -> None:
        for position, value in enumerate(list(self._graph.outputs)):
            if value.dtype != self.half or not self._floats[position]:
                continue
            name, value.name = value.name, f"{value.name}_half"
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
            cast.outputs[0].name = name
            cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            cast.outputs[0].shape = value.shape
            self._graph.append(cast)
            self._graph.outputs[position] = cast.outputs[0]

    def _check(self, node: ir.Node) -> None:
        if has_body(node):
            raise ExportError(
                f"node '{node.name}' ({node.op_type})",
                got="a graph with control flow",
                expected="a plain graph for half precision",
                remedy="Export the network without If, Loop or Scan, or use --precision fp32",
            )


def _untyped(node: ir.Node) -> ExportError:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return ExportError(
        f"node '{node.name}' ({name})",
        got="an output of unknown type",
        expected="operators whose types can be inferred, for half precision",
        remedy="Use --precision fp32, or export the network without this operator",
    )


def _drop_idle(graph: ir.Graph, node: ir.Node) -> None:
    """Let what a Cast reads take its place where it does not change the type."""
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type != "Cast" or source is None or source.dtype != output.dtype:
        return
    if output.is_graph_output() and (source.is_graph_output() or source.producer() is None):
        return
    source.shape = source.shape or output.shape
    take_over(graph, output, source, list(output.uses()))


def _kept_nodes(graph: ir.Graph) -> set[ir.Node]:
    kept = {node for node in graph if node.op_type in _KEPT_OPS}
    waiting = [node for node in kept if node.op_type in _SINUSOID_OPS]
    while waiting:
        for value in waiting.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in kept:
                kept.add(producer)
                waiting.append(producer)
    return kept


def _border_layers(graph: ir.Graph) -> set[ir.Node]:
    """Return the float convolutions that read a graph input, and the float layer that makes the output.

    What only moves or adds a constant to the last layer's values is among them.
    """
    readers = (use.node for value in graph.inputs for use in value.uses())
    found = {node for node in readers if node.op_type == "Conv" and not _is_quantized(node)}
    values = list(graph.outputs)
    while values:
        node = values.pop().producer()
        if node is None or _is_quantized(node):
            continue
        computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if node.op_type in LAYER_OPS:
            found.add(node)
        elif node.op_type in _MOVES or (node.op_type in ("Add", "Einsum") and len(computed) == 1):
            found.add(node)
            values += computed[:1]
    return found


def _takes_bfloat16(node: ir.Node, opset: int) -> bool:
    """Return whether ONNX lets `node` write bfloat16 instead of float32; not for a foreign operator."""
    if node.domain:
        return False
    schema = defs.get_schema(node.op_type, opset)
    written = schema.outputs[0].type_str
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == written), ())
    return "tensor(float)" not in allowed or "tensor(bfloat16)" in allowed


def _is_quantized(node: ir.Node) -> bool:
    """Return whether the weight of `node` comes from DequantizeLinear."""
    producer = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"
