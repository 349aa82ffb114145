"""Find the external data that an ONNX model names, and refuse what lies outside its folder.

One walk for everybody: the runtime, the linter, the export and the digests of engines.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accuquant._util.named_file import named_file, shown
from accuquant._util.protobuf import BYTES, VARINT, Field, fields, read_varint
from accuquant.errors import AccuQuantError, EngineError

# Field numbers of onnx.proto3 on every path from ModelProto to TensorProto. The rest, and above all the
# weights themselves, is skipped unread: protobuf's own parser would copy a 2 GB file into memory, twice.
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
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_KEY, _VALUE = 1, 2
_COPY_AGAIN = "The file is damaged or incomplete: export or copy it again"


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file: `length` is None where the model does not say it."""

    name: str
    location: str
    offset: int = 0
    length: int | None = None


def external_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the distinct external data locations in an ONNX file, as written, in order.

    Raises EngineError where the file is missing, damaged or not ONNX. Reads the file's structure
    only, never its weights.
    """
    return tuple(dict.fromkeys(tensor.location for tensor in external_tensors(path)))


def external_tensors(
    path: str | os.PathLike[str], *, error: type[AccuQuantError] = EngineError
) -> tuple[ExternalTensor, ...]:
    """Return every tensor of an ONNX file that names external data, wherever it stands in the file.

    Raises `error` where the file is missing, damaged or not ONNX. Reads the file's structure only.
    """
    with open_message(path, error=error) as data:
        return tuple(_tensors(data))


@contextmanager
def open_message(path: str | os.PathLike[str], *, error: type[AccuQuantError]) -> Iterator[mmap.mmap]:
    """Map an ONNX file; a ValueError inside the block, and a file that cannot be mapped, become `error`."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError) as fault:
        missing = isinstance(fault, FileNotFoundError)
        raise error(
            f"model '{path}'",
            got="no such file" if missing else f"a damaged file ({fault})",
            expected="a complete ONNX file",
            remedy="Check the path" if missing else _COPY_AGAIN,
        ) from fault


def check_external_files(path: str | os.PathLike[str], *, error: type[AccuQuantError] = EngineError) -> None:
    """Raise `error` unless all external data of the model at `path` lies in its folder, and is all there."""
    model = Path(path)
    for tensor in external_tensors(path, error=error):
        subject = f"'{model}', tensor {shown(tensor.name)}"
        target = named_file(model.parent, tensor.location, subject=f"{subject}: external data", error=error)
        if not target.is_file():
            raise error(
                subject,
                got=f"no file {shown(tensor.location)} beside it",
                expected="the model's external data in the same folder",
                remedy=f"Copy {shown(tensor.location)} to '{model.parent}' too, or export the model again",
            )
        size, end = target.stat().st_size, tensor.offset + (tensor.length or 0)
        if end > size:
            raise error(
                subject,
                got=f"{size} bytes where tensor {shown(tensor.name)} ends at {end}",
                expected="the model's whole external data",
                remedy=_COPY_AGAIN,
            )


def _tensors(data: mmap.mmap) -> Iterator[ExternalTensor]:
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        inside = list(fields(data, start, end))
        if message == "Tensor":
            yield from _external(data, inside)
            continue
        for field in inside:
            inner = _MESSAGES.get((message, field.number))
            if inner is None:
                continue
            if field.wire != BYTES:
                raise ValueError(f"a number where a {inner} belongs")
            pending.append((inner, field.start, field.end))


def _external(data: mmap.mmap, tensor: list[Field]) -> Iterator[ExternalTensor]:
    """Yield what one tensor names, once for each of its locations: engines differ in which one they take."""
    name, is_external = "", False
    entries: list[tuple[str, str]] = []
    for field in tensor:
        if field.number == _TENSOR_NAME and field.wire == BYTES:
            name = _text(data, field)
        elif field.number == _DATA_LOCATION and field.wire == VARINT:
            is_external = is_external or read_varint(data, field) == 1
        elif field.number in (_EXTERNAL_DATA, _DATA_LOCATION):
            if field.wire != BYTES or field.number == _DATA_LOCATION:
                raise ValueError("external data that is no message")
            entry = {
                f.number: _text(data, f) for f in fields(data, field.start, field.end) if f.wire == BYTES
            }
            entries.append((entry.get(_KEY, ""), entry.get(_VALUE, "")))
    if not entries and not is_external:
        return
    facts = dict(entries)
    length = facts.get("length")
    for location in [value for key, value in entries if key == "location"] or [""]:
        yield ExternalTensor(
            name,
            location,
            _number("offset", facts.get("offset", "0")),
            None if length is None else _number("length", length),
        )


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"external data with {key} {shown(text)}")
    return int(text)


def _text(data: mmap.mmap, field: Field) -> str:
    return data[field.start : field.end].decode("utf-8")
