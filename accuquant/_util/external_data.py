"""Find the external data files that an ONNX model names, and refuse those outside its folder."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from accuquant._util.named_file import named_file
from accuquant.errors import EngineError

# Field numbers of onnx.proto3 on every path from ModelProto to TensorProto.external_data. The rest,
# and above all the weights themselves, is skipped unread; so no protobuf or onnx package is needed.
_MESSAGES: dict[tuple[str, int], str] = {
    ("Model", 7): "Graph",
    ("Model", 20): "Training",
    ("Model", 25): "Function",
    ("Training", 1): "Graph",
    ("Training", 2): "Graph",
    ("Function", 7): "Node",
    ("Function", 11): "Attribute",
    ("Graph", 1): "Node",
    ("Graph", 5): "Tensor",
    ("Graph", 15): "SparseTensor",
    ("Node", 5): "Attribute",
    ("Attribute", 5): "Tensor",
    ("Attribute", 6): "Graph",
    ("Attribute", 10): "Tensor",
    ("Attribute", 11): "Graph",
    ("Attribute", 22): "SparseTensor",
    ("Attribute", 23): "SparseTensor",
    ("SparseTensor", 1): "Tensor",
    ("SparseTensor", 2): "Tensor",
    ("Tensor", 13): "ExternalData",
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the distinct external data locations in an ONNX file, as written, in order.

    Raises EngineError where the file is missing, truncated or not ONNX. Reads the file's structure
    only, never its weights.
    """
    model = Path(path)
    try:
        with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return tuple(dict.fromkeys(_locations(data)))
    except (OSError, ValueError) as fault:
        raise EngineError(
            f"model '{model}'",
            got="no such file" if isinstance(fault, FileNotFoundError) else f"a damaged file ({fault})",
            expected="an ONNX model",
            remedy="Run `accuquant export` again",
        ) from fault


def check_external_files(path: str | os.PathLike[str]) -> None:
    """Raise EngineError unless all external data of the model at `path` lies in the model's folder."""
    folder = Path(path).parent
    for location in external_files(path):
        target = named_file(folder, location, subject=f"external data of model '{path}'")
        if not target.is_file():
            raise EngineError(
                f"model '{path}'",
                got=f"no external data file '{location}'",
                expected=f"'{location}' beside the model",
                remedy="Copy the whole exported folder, or run `accuquant export` again",
            )


def _locations(data: mmap.mmap) -> Iterator[str]:
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        if message == "ExternalData":
            entry = {number: data[a:b] for number, a, b in _fields(data, start, end)}
            if entry.get(_KEY) == b"location":
                yield entry.get(_VALUE, b"").decode("utf-8")
            continue
        for number, a, b in _fields(data, start, end):
            inner = _MESSAGES.get((message, number))
            if inner is not None:
                pending.append((inner, a, b))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first byte, end) of each length-delimited field of one message."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        if wire == _BYTES:
            length, position = _varint(data, position, end)
            if position + length > end:
                raise ValueError("truncated")
            yield tag >> 3, position, position + length
            position += length
        elif wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("not a protobuf file")
    if position != end:
        raise ValueError("truncated")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("truncated")
