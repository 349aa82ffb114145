"""What is wrong with a model file, found before an engine or a converter opens it.

Engines trust a file: a convolution without a weight ends the process, an extent of 2^62 its memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from accuquant._util.external_data import check_external_files
from accuquant.errors import AccuQuantError
from accuquant.graph.skeleton import check_small, element_bits, read_skeleton, without_weights
from accuquant.graph.sorting import sort_nodes

#: Elements that an input or output may declare: an image of 16384 x 16384 x 3 has 0.8 G.
_LARGEST_INPUT = 2**30
#: Elements of a tensor inside the graph: attention scores of large images are the largest.
_LARGEST_TENSOR = 2**36
#: What a window, a stride or a padding may be.
_LARGEST_STEP = 2**20
#: Operators that fill memory as a constant tells them -> the input that tells it.
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}
_STEPS = ("kernel_shape", "strides", "dilations")
_POSITIVE = (*_STEPS, "group")
_DOMAINS = ("", "ai.onnx")


def check_sound(path: str | os.PathLike[str], *, error: type[AccuQuantError]) -> None:
    """Raise `error` unless the .onnx at `path` is whole, valid, keeps to its folder, and asks for no more.

    Weights are not read.
    """
    check_external_files(path, error=error)
    fault = _fault(read_skeleton(path, error=error))
    if fault is not None:
        raise error(
            f"model '{path}'",
            got=f"an invalid graph ({fault})",
            expected="a complete ONNX file that onnx.checker accepts",
            remedy="The file is damaged or was changed: export or copy it again",
        )


def find_fault(model: onnx.ModelProto) -> str | None:
    """Return what is wrong with `model`, in a line, or None. External data is not looked for."""
    try:
        return _fault(without_weights(model))
    except ValueError as fault:
        return str(fault)


def _fault(bare: onnx.ModelProto) -> str | None:
    """Return what is wrong with a model whose large initializers have no values."""
    return next(_faults(bare), None) or _checker_says(bare)


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    yield from _version_faults(model)
    for graph in _graphs(model):
        yield from _value_faults(graph)
        yield from _node_faults(graph)
        for tensor in graph.initializer:
            yield from _tensor_faults(tensor)


def _version_faults(model: onnx.ModelProto) -> Iterator[str]:
    if not model.graph.node:
        yield "a file without any node"
    elif not model.graph.output:
        yield "a graph without an output"
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not model.opset_import:
        yield "a file without an opset"
    for version in versions:
        if not 1 <= version <= newest:
            yield f"opset {version}, where the installed onnx {onnx.__version__} knows 1 to {newest}"


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every body inside it; functions have bodies without values of their own."""
    pending = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while pending or nodes:
        if pending:
            graph = pending.pop()
            yield graph
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)


def _value_faults(graph: onnx.GraphProto) -> Iterator[str]:
    for values, largest in (
        ((*graph.input, *graph.output), _LARGEST_INPUT),
        (graph.value_info, _LARGEST_TENSOR),
    ):
        for value in values:
            extents = value.type.tensor_type.shape.dim
            fixed = [extent.dim_value for extent in extents if extent.HasField("dim_value")]
            yield from _extent_faults(value.name, fixed, largest)


def _tensor_faults(tensor: onnx.TensorProto) -> Iterator[str]:
    yield from _extent_faults(tensor.name, list(tensor.dims), _LARGEST_TENSOR)
    if tensor.data_type != onnx.TensorProto.STRING and not element_bits(tensor.data_type):
        yield f"tensor {tensor.name[:80]!r} of unknown type {tensor.data_type}"


def _extent_faults(name: str, extents: list[int], largest: int) -> Iterator[str]:
    if any(extent < 0 for extent in extents):
        yield f"{name[:80]!r} with an extent of {min(extents)}"
    elif (count := math.prod(extents)) > largest:
        yield f"{name[:80]!r} of {count:.2g} elements, more than {largest:.2g}"


def _node_faults(graph: onnx.GraphProto) -> Iterator[str]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and node.output:
                constants[node.output[0]] = attribute.t
            yield from _attribute_faults(node, attribute)
        position = _SHAPE_INPUT.get(node.op_type)
        if position is not None and len(node.input) > position:
            yield from _shape_faults(node, constants.get(node.input[position]))


def _attribute_faults(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Iterator[str]:
    numbers = [*attribute.ints, attribute.i] if attribute.name == "group" else list(attribute.ints)
    where = f"{node.op_type[:40]} {node.name[:80]!r} with {attribute.name[:40]}"
    if attribute.HasField("t"):
        yield from _tensor_faults(attribute.t)
        try:
            check_small(attribute.t)
        except ValueError as fault:
            yield str(fault)
    if attribute.name not in (*_POSITIVE, "pads", "output_padding", "output_shape"):
        return
    if any(abs(number) > _LARGEST_STEP for number in numbers):
        yield f"{where} {max(numbers, key=abs)}"
    elif attribute.name in _POSITIVE and numbers and min(numbers) < (0 if attribute.name == "group" else 1):
        yield f"{where} {min(numbers)}"


def _shape_faults(node: onnx.NodeProto, tensor: onnx.TensorProto | None) -> Iterator[str]:
    """Bound the shape that a constant asks for."""
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    try:
        shape = np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
    except (TypeError, ValueError):
        yield f"tensor {tensor.name[:80]!r} that does not hold what it declares"
        return
    if shape.dtype.kind in "iu" and shape.size < 64:
        count = math.prod(max(abs(int(extent)), 1) for extent in shape)
        if count > _LARGEST_TENSOR:
            yield f"{node.op_type} {node.name[:80]!r} of {count:.2g} elements"


def _checker_says(bare: onnx.ModelProto) -> str | None:
    """Return what onnx.checker finds where initializers are declared as inputs: their bytes need no check."""
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in declared:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del model.graph.initializer[:]
    for value in model.graph.output:  # the checker asks for a shape; engines find it themselves
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    for graph in _graphs(model):
        for tensor in _external(graph):
            _neutralize(tensor)
    try:
        sort_nodes(model)
        onnx.checker.check_model(model)
    except Exception as fault:  # the checker and protobuf have exception classes of their own
        reason = str(fault).strip().splitlines()
        return reason[0][:200] if reason else type(fault).__name__
    return None


def _external(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the external tensors of a graph, which check_external_files has looked at."""
    attributes = [
        attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")
    ]
    for tensor in (*graph.initializer, *attributes):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _neutralize(tensor: onnx.TensorProto) -> None:
    """Give an external tensor the values of an empty one: the checker would look for its file."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    del tensor.dims[:]
    tensor.dims.append(0)
