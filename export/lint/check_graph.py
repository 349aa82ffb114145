"""What the linter's rules see of a graph: who writes, reads and types each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import SourceError

FloatArray = npt.NDArray[np.float64]

#: Operators that keep a constant constant; engines fold them when they build.
_FOLDABLE = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Violation:
    """A node that breaks one of TensorRT's int8 rules, and what to do about it."""

    rule: str
    node: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Read:
    """One use of a tensor: input number `index` of `node`."""

    node: onnx.NodeProto
    index: int


@dataclass(frozen=True)
class GraphView:
    """A graph or the body of an If, Loop or Scan; a body also sees the tensors around it.

    Tensors may lie in external files under `folder`; only `values` reads them, one at a time.
    """

    path: Path
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    outputs: frozenset[str]
    producers: Mapping[str, onnx.NodeProto]
    reads: Mapping[str, tuple[Read, ...]]
    constants: Mapping[str, TensorProto]
    types: Mapping[str, int]

    def select(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of these operator types, in the graph's order."""
        return (node for node in self.nodes if node.op_type in operators)

    def producer(self, node: onnx.NodeProto, index: int = 0) -> onnx.NodeProto | None:
        """Return the node that writes input `index`, None for constants and graph inputs."""
        return self.producers.get(input_name(node, index))

    def readers(self, node: onnx.NodeProto) -> tuple[Read, ...]:
        """Return every use of the node's first output."""
        return self.reads.get(node.output[0], ())

    def is_constant(self, name: str) -> bool:
        """Say whether a tensor is an initializer, a Constant, or one of those reshaped, cast or quantized."""
        while name not in self.constants:
            node = self.producers.get(name)
            if node is None or node.op_type not in _FOLDABLE:
                return False
            name = input_name(node, 0)
        return True

    def is_activation(self, node: onnx.NodeProto | None) -> bool:
        """Say whether `node` is a DequantizeLinear of something else than a constant."""
        return (
            node is not None
            and node.op_type == "DequantizeLinear"
            and not self.is_constant(input_name(node, 0))
        )

    def type_of(self, name: str) -> int:
        """Return the element type of a tensor, TensorProto.UNDEFINED where it cannot be told."""
        tensor = self.constants.get(name)
        return tensor.data_type if tensor is not None else self.types.get(name, TensorProto.UNDEFINED)

    def values(self, name: str) -> FloatArray | None:
        """Read a small constant as float64, None where it is not one. Raises SourceError if it is damaged."""
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor, str(self.path.parent)), np.float64)
        except (OSError, TypeError, ValueError, onnx.checker.ValidationError) as fault:
            raise SourceError(
                f"'{self.path}', tensor '{name}'",
                got=f"{type(fault).__name__}: {fault}",
                expected=f"{list(tensor.dims)} elements of type {type_name(tensor.data_type)}",
                remedy="The file is damaged or incomplete: export or copy it again",
            ) from fault

    def scale(self, node: onnx.NodeProto) -> FloatArray | None:
        """Return the constant scale of a QuantizeLinear or DequantizeLinear, None where it is computed."""
        return self.values(input_name(node, 1))


def input_name(node: onnx.NodeProto, index: int) -> str:
    """Return the name of input `index`, an empty one where the input is left out."""
    return node.input[index] if index < len(node.input) else ""


def label(node: onnx.NodeProto) -> str:
    """Return the node's name, or what it writes where it has none."""
    return node.name or f"{node.op_type} of '{node.output[0]}'"


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value, `default` where it is not set."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def type_name(element_type: int) -> str:
    """Return the ONNX name of an element type, in lower case."""
    return str(TensorProto.DataType.Name(element_type)).lower()


def graph_views(model: onnx.ModelProto, path: Path) -> list[GraphView]:
    """Return the model's graph and the bodies inside it, outermost first.

    Local functions are inlined and element types inferred. The initializers are neither copied nor read.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    empty = GraphView(path, opset, (), frozenset(), {}, {}, constants, {})
    return list(_views(_typed_graph(model), empty))


def _typed_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """Copy the graph with its initializers declared as inputs, and infer every element type."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in declared:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    try:
        return onnx.shape_inference.infer_shapes(bare).graph
    except onnx.shape_inference.InferenceError:
        # Types that contradict each other end the inference; the rules then judge the declared ones.
        return graph


def _views(graph: onnx.GraphProto, outer: GraphView) -> Iterator[GraphView]:
    values = (*graph.input, *graph.value_info, *graph.output)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
            constants[node.output[0]] = tensor
    view = GraphView(
        path=outer.path,
        opset=outer.opset,
        nodes=tuple(graph.node),
        outputs=frozenset(value.name for value in graph.output),
        producers={**outer.producers, **{name: node for node in graph.node for name in node.output if name}},
        reads=_reads(graph),
        constants={**outer.constants, **constants},
        types={**outer.types, **{value.name: value.type.tensor_type.elem_type for value in values}},
    )
    yield view
    for node in graph.node:
        for body in _bodies(node):
            yield from _views(body, view)


def _reads(graph: onnx.GraphProto) -> dict[str, tuple[Read, ...]]:
    found: dict[str, list[Read]] = {}
    for node in _all_nodes(graph):
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append(Read(node, index))
    return {name: tuple(reads) for name, reads in found.items()}


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    tensor: TensorProto | None = attribute(node, "value", None)
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        number = attribute(node, name, None)
        if number is not None:
            kind = np.float32 if "float" in name else np.int64
            tensor = numpy_helper.from_array(np.asarray(number, kind))
    return tensor
