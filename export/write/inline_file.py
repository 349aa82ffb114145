"""Write a graph with its weights inside the .onnx, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.export.write.check_types import check_types

# Field numbers of onnx.proto3; all four are length-delimited.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2
#: The longest message that protobuf reads.
_LONGEST = 2**31 - 1


def save_inline(model: ir.Model, path: Path, tensors: Sequence[ir.TensorProtocol]) -> None:
    """Write `model` to `path` as one protobuf file; raise what onnx.checker and check_types raise.

    A message in memory would hold every weight, and protobuf would copy it once more to write it. So
    `tensors`, the large initializers, are left out of the message and written behind it: the fields of a
    protobuf message may come in any order. Lazy tensors are computed when their turn comes. Raises
    ExportError, before anything is written, for a file that protobuf could not read again.
    """
    large = {id(tensor) for tensor in tensors}
    values = [v for v in model.graph.initializers.values() if id(v.const_value) in large]
    proto = _without(model, values)
    _check(proto, values)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    headers = [_header(value) for value in values]
    length = len(graph) + sum(len(header) + _bytes_of(v) for header, v in zip(headers, values, strict=True))
    head = proto.SerializeToString() + _tag(_MODEL_GRAPH) + _varint(length)
    _check_length(path, len(head) + length)
    with open(path, "wb") as file:
        file.write(head)
        file.write(graph)
        for header, value in zip(headers, values, strict=True):
            file.write(header)
            _write(file, value)


def _check_length(path: Path, length: int) -> None:
    if length > _LONGEST:
        raise ExportError(
            f"'{path.name}'",
            got=f"{length / 1e9:.1f} GB with its weights inside",
            expected="less than 2 GB: nothing reads a longer protobuf message",
            remedy="Give --external-data, which puts the weights into a file of their own",
        )


def _without(model: ir.Model, values: Sequence[ir.Value]) -> onnx.ModelProto:
    """Serialize `model` without the initializers `values`, which keep their tensors."""
    kept = {value: value.const_value for value in values}
    try:
        for value in values:
            del model.graph.initializers[str(value.name)]
        return ir.to_proto(model)
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
            model.graph.register_initializer(value)


def _check(proto: onnx.ModelProto, values: Sequence[ir.Value]) -> None:
    """Run onnx.checker and check_types.

    The large initializers are declared as inputs: their bytes have nothing to check.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        bare.graph.input.append(
            onnx.helper.make_tensor_value_info(str(value.name), int(tensor.dtype), tensor.shape.numpy())
        )
    onnx.checker.check_model(bare)
    check_types(bare)


def _header(value: ir.Value) -> bytes:
    """Return everything of an initializer field up to its bytes."""
    tensor = value.const_value
    assert tensor is not None
    description = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    inner: bytes = description.SerializeToString() + _tag(_TENSOR_RAW_DATA) + _varint(tensor.nbytes)
    return _tag(_GRAPH_INITIALIZER) + _varint(len(inner) + tensor.nbytes) + inner


def _bytes_of(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _write(file: BinaryIO, value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    data = tensor.tobytes()
    assert len(data) == tensor.nbytes, f"{value.name}: the lengths before it are written already"
    file.write(data)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


def _varint(number: int) -> bytes:
    return bytes(_varint_digits(number))


def _varint_digits(number: int) -> Iterator[int]:
    while number >= 0x80:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
