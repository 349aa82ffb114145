"""The shape of every tensor of an ONNX graph once its inputs have shapes, dynamic Reshapes included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from accuquant.errors import EngineError
from accuquant.export.lint.check_graph import attribute, input_name

#: Constants up to this many elements may be shapes, or what shapes are computed from.
_SHAPE_SIZE = 64
#: What exporters compute shapes with.
_SHAPE_OPS = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub"}
    | {"Unsqueeze"}
)
Shape = tuple[int, ...]


def tensor_shapes(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of each tensor whose shape can be told, in one pass over the nodes.

    `inputs` gives the shapes of the inputs that have a dynamic extent. External data is not read.
    Raises EngineError where an input stays dynamic.
    """
    walk = _Walk(model, inputs)
    for node in model.graph.node:
        walk.visit(node)
    return walk.shapes


class _Walk:
    """Knows the types of the tensors so far, and the values of those that may become shapes."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> None:
        self.opsets = list(model.opset_import)
        self.opset = {entry.domain: entry.version for entry in self.opsets}
        self.ir_version = model.ir_version
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, npt.NDArray[Any]] = {}
        for tensor in model.graph.initializer:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if math.prod(tensor.dims) <= _SHAPE_SIZE and tensor.data_location != TensorProto.EXTERNAL:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
        for value in model.graph.input:
            if value.name not in self.types:
                self.types[value.name] = _fixed(value, inputs)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes that are known."""
        found = {name: _static_shape(value) for name, value in self.types.items()}
        return {name: shape for name, shape in found.items() if shape is not None}

    def visit(self, node: onnx.NodeProto) -> None:
        """Infer the outputs of `node`, and compute them where they may be shapes."""
        self._compute(node)
        if node.op_type == "GroupNormalization" and node.input[0] in self.types:
            # onnx infers nothing for it; it keeps the shape of its input.
            self.types[node.output[0]] = self.types[node.input[0]]
            return
        inputs = [name for name in node.input if name]
        if not all(name in self.types for name in inputs):
            return
        schema = onnx.defs.get_schema(node.op_type, self.opset.get(node.domain, 1), node.domain)
        data = {name: self.values[name] for name in inputs if name in self.values}
        self.types |= onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: self.types[name] for name in inputs},
            {name: numpy_helper.from_array(value, name) for name, value in data.items()},
            opset_imports=self.opsets,
            ir_version=self.ir_version,
        )

    def _compute(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Shape":
            shape = _static_shape(self.types.get(input_name(node, 0), onnx.TypeProto()))
            if shape is not None:
                window = slice(attribute(node, "start", 0), attribute(node, "end", None))
                self.values[node.output[0]] = np.array(shape, np.int64)[window]
        elif node.op_type == "Constant" and (tensor := attribute(node, "value", None)) is not None:
            self.values[node.output[0]] = numpy_helper.to_array(tensor)
        elif node.op_type in _SHAPE_OPS and all(name in self.values for name in node.input if name):
            # A small float constant may come through here too; that costs little and harms nothing.
            result = ReferenceEvaluator(node).run(
                None, {name: self.values[name] for name in node.input if name}
            )
            self.values |= dict(zip(node.output, result, strict=True))


def _fixed(value: onnx.ValueInfoProto, inputs: Mapping[str, Shape]) -> onnx.TypeProto:
    shape = inputs.get(value.name) or _static_shape(value.type)
    if shape is None:
        raise EngineError(
            f"input '{value.name}'",
            got="a dynamic extent without a shape for it",
            expected="one shape",
            remedy=f"Give --optShapes {value.name}:1x3x32x32, for example",
        )
    return helper.make_tensor_type_proto(value.type.tensor_type.elem_type, list(shape))


def _static_shape(value: onnx.TypeProto) -> Shape | None:
    if not value.HasField("tensor_type") or not value.tensor_type.HasField("shape"):
        return None
    dims = value.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)
