"""Read the structure of an ONNX file without its weights, and say what is wrong with it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.numpy_helper

from accuquant._util.external_data import open_message
from accuquant._util.protobuf import BYTES, Buffer, Field, encode_field, fields
from accuquant.errors import AccuQuantError

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
#: The fields of a TensorProto that hold values: float, int32, string, int64, raw, double, uint64.
_PAYLOAD = frozenset((4, 5, 6, 7, 9, 10, 11))
#: Initializers up to this many bytes are kept: shapes and scales are checked too.
_SMALL = 4096


def read_skeleton(path: str | os.PathLike[str], *, error: type[AccuQuantError]) -> onnx.ModelProto:
    """Return the model at `path`, its large initializers without their values.

    A file of 1 GB takes as much memory as its nodes. Raises `error` for a file that is no ONNX model.
    """
    with open_message(path, error=error) as data:
        return _parsed(b"".join(_model(data)))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` whose large initializers have no values."""
    bare = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    graph = bare.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            check_small(tensor)
            graph.initializer.append(tensor)
        else:
            _check_values(tensor, len(tensor.raw_data) if tensor.HasField("raw_data") else None)
            graph.initializer.append(
                onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
    return bare


def element_bits(data_type: int) -> int:
    """Return how many bits an element takes, 0 where the type is unknown or has no fixed size."""
    return _BITS.get(data_type, 0)


def check_small(tensor: onnx.TensorProto) -> None:
    """Raise ValueError unless a tensor that is not external holds as many values as it declares."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > _SMALL:
        return
    if tensor.data_type != onnx.TensorProto.STRING and not element_bits(tensor.data_type):
        raise ValueError(f"tensor {tensor.name[:80]!r} of unknown type {tensor.data_type}")
    if any(extent < 0 for extent in tensor.dims) or math.prod(tensor.dims) > 8 * _SMALL:
        raise ValueError(f"tensor {tensor.name[:80]!r} of {math.prod(tensor.dims):.2g} elements")
    try:
        onnx.numpy_helper.to_array(tensor)
    except Exception as fault:  # numpy and onnx raise many unrelated kinds
        raise ValueError(f"tensor {tensor.name[:80]!r} without the values that it declares") from fault


def _bits() -> Mapping[int, int]:
    odd = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    found: dict[int, int] = {}
    for name, number in onnx.TensorProto.DataType.items():
        if name in odd:
            found[number] = odd[name]
        elif name not in ("UNDEFINED", "STRING"):
            dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(number)
            found[number] = 8 * int(dtype.itemsize)
    return found


_BITS = _bits()


def _parsed(message: bytes) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(message)
    except DecodeError as fault:
        raise ValueError(str(fault) or "not an ONNX model") from fault
    return model


def _model(data: Buffer) -> Iterator[bytes]:
    for field in fields(data, 0, len(data)):
        if field.number == _MODEL_GRAPH and field.wire == BYTES:
            yield encode_field(_MODEL_GRAPH, b"".join(_graph(data, field)))
        else:
            yield data[field.begin : field.end]


def _graph(data: Buffer, graph: Field) -> Iterator[bytes]:
    for field in fields(data, graph.start, graph.end):
        if field.number != _GRAPH_INITIALIZER or field.wire != BYTES:
            yield data[field.begin : field.end]
        elif field.end - field.start > _SMALL:
            yield encode_field(_GRAPH_INITIALIZER, _header(data, field))
        else:
            check_small(_tensor(data[field.start : field.end]))
            yield data[field.begin : field.end]


def _header(data: Buffer, tensor: Field) -> bytes:
    """Return a tensor without its values. Raises ValueError where they are not as many as it declares."""
    inside = list(fields(data, tensor.start, tensor.end))
    header = b"".join(data[f.begin : f.end] for f in inside if f.number not in _PAYLOAD)
    values = [f for f in inside if f.number in _PAYLOAD]
    raw = [f.end - f.start for f in values if f.number == 9]
    _check_values(_tensor(header), raw[-1] if raw else None)
    return header


def _tensor(message: bytes) -> onnx.TensorProto:
    from google.protobuf.message import DecodeError

    try:
        tensor: onnx.TensorProto = onnx.TensorProto.FromString(message)
    except DecodeError as fault:
        raise ValueError(str(fault) or "not a tensor") from fault
    return tensor


def _check_values(tensor: onnx.TensorProto, raw: int | None) -> None:
    """Raise ValueError unless `raw` bytes are what the shape and type of `tensor` take."""
    bits = element_bits(tensor.data_type)
    if any(extent < 0 for extent in tensor.dims) or not bits:
        return  # what find_fault names
    wanted = -(-math.prod(tensor.dims) * bits // 8)
    if raw is not None and raw != wanted:
        raise ValueError(f"{raw} bytes in tensor {tensor.name[:80]!r}, which declares {wanted}")
