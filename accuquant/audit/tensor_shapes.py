"""The shape of every tensor of an ONNX graph once its inputs have shapes, dynamic Reshapes included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from accuquant.errors import EngineError

#: Constants up to this many elements may be shapes, or what shapes are computed from.
_SHAPE_SIZE = 64
#: What exporters compute shapes with.
_SHAPE_OPS = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub"}
    | {"Unsqueeze"}
)
Shape = tuple[int, ...]


def tensor_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[ir.Value, Shape]:
    """Return the shape of each tensor whose shape can be told, in one pass over the nodes.

    `inputs` gives the shapes of the inputs that have a dynamic extent. External data is not read.
    Raises EngineError where an input stays dynamic.
    """
    walk = _Walk(model, inputs)
    for node in model.graph:
        walk.visit(node)
    return walk.shapes


class _Walk:
    """Knows the types of the tensors so far, and the values of those that may become shapes."""

    def __init__(self, model: ir.Model, inputs: Mapping[str, Shape]) -> None:
        self.opset = dict(model.opset_imports)
        self.opsets = [helper.make_opsetid(domain, version) for domain, version in self.opset.items()]
        self.ir_version = model.ir_version
        self.types: dict[ir.Value, onnx.TypeProto] = {}
        self.values: dict[ir.Value, npt.NDArray[Any]] = {}
        for value in model.graph.initializers.values():
            self._know(value, value.const_value)
        for value in model.graph.inputs:
            if value not in self.types:
                self.types[value] = _fixed(value, inputs)

    @property
    def shapes(self) -> dict[ir.Value, Shape]:
        """The shapes that are known."""
        found = {value: _static_shape(kind) for value, kind in self.types.items()}
        return {value: shape for value, shape in found.items() if shape is not None}

    def visit(self, node: ir.Node) -> None:
        """Infer the outputs of `node`, and compute them where they may be shapes."""
        self._compute(node)
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "GroupNormalization" and inputs[0] in self.types:
            # onnx infers nothing for it; it keeps the shape of its input.
            self.types[node.outputs[0]] = self.types[inputs[0]]
            return
        if not all(value in self.types for value in inputs):
            return
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, self.opset.get(node.domain, 1), node.domain),
            ir.serde.serialize_node(node),
            {str(value.name): self.types[value] for value in inputs},
            {
                str(value.name): numpy_helper.from_array(self.values[value], value.name)
                for value in inputs
                if value in self.values
            },
            opset_imports=self.opsets,
            ir_version=self.ir_version,
        )
        self.types |= {value: found[value.name] for value in node.outputs if value.name in found}

    def _know(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        """Remember the type of a constant, and its elements where it is small and lies in the .onnx."""
        if tensor is None:
            return
        shape = tensor.shape.numpy()
        self.types[value] = helper.make_tensor_type_proto(int(tensor.dtype), shape)
        if math.prod(shape) <= _SHAPE_SIZE and not isinstance(tensor, ir.ExternalTensor):
            self.values[value] = tensor.numpy()

    def _compute(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "Shape":
            kind = self.types.get(inputs[0])
            shape = None if kind is None else _static_shape(kind)
            if shape is not None:
                window = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", None))
                self.values[node.outputs[0]] = np.array(shape, np.int64)[window]
        elif node.op_type == "Constant":
            self._know(node.outputs[0], ir.convenience.get_const_tensor(node.outputs[0]))
        elif node.op_type in _SHAPE_OPS and all(value in self.values for value in inputs):
            # A small float constant may come through here too; that costs little and harms nothing.
            feeds = {str(value.name): self.values[value] for value in inputs}
            results: Any = ReferenceEvaluator(ir.serde.serialize_node(node)).run(None, feeds)
            self.values |= dict(zip(node.outputs, results, strict=True))


def _fixed(value: ir.Value, inputs: Mapping[str, Shape]) -> onnx.TypeProto:
    shape = inputs.get(str(value.name))
    if shape is None and value.shape is not None and value.shape.is_static():
        shape = tuple(value.shape.numpy())
    if shape is None:
        raise EngineError(
            f"input '{value.name}'",
            got="a dynamic extent without a shape for it",
            expected="one shape",
            remedy=f"Give --optShapes {value.name}:1x3x32x32, for example",
        )
    return helper.make_tensor_type_proto(int(value.dtype or ir.DataType.UNDEFINED), list(shape))


def _static_shape(kind: onnx.TypeProto) -> Shape | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)
