"""Walk a protobuf message field by field, as strictly as a parser, without reading what it holds."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
#: A tag has 32 bits and a length 31: a decoder that reads more, or fewer, sees other fields than an engine.
_TAG_BYTES, _LARGEST_TAG = 5, 2**32 - 1
_LENGTH_BYTES, _LARGEST_LENGTH = 5, 2**31 - 1
_VALUE_BYTES = 10

Buffer = bytes | mmap.mmap


class Field(NamedTuple):
    """One field of a message: its number and wire type, where its tag begins, where its content lies."""

    number: int
    wire: int
    begin: int
    start: int
    end: int


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield each field of the message in `data[start:end]`. Raises ValueError where it is damaged.

    Groups, field number 0, tags above 32 bits and lengths above 31 are damage: no ONNX file has them, and
    decoders do not agree on what they mean.
    """
    position = start
    while position < end:
        begin = position
        tag, position = _varint(data, position, end, _TAG_BYTES)
        number, wire = tag >> 3, tag & 7
        if tag > _LARGEST_TAG or not number:
            raise ValueError("a field tag that protobuf does not have")
        content = position
        if wire == BYTES:
            length, content = _varint(data, position, end, _LENGTH_BYTES)
            if length > _LARGEST_LENGTH:
                raise ValueError("a field longer than protobuf's 2 GB")
            position = content + length
        elif wire == VARINT:
            _, position = _varint(data, position, end, _VALUE_BYTES)
        elif wire in (FIXED32, FIXED64):
            position += 4 if wire == FIXED32 else 8
        else:
            raise ValueError("not a protobuf file")
        if position > end:
            raise ValueError("truncated")
        yield Field(number, wire, begin, content, position)


def read_varint(data: Buffer, field: Field) -> int:
    """Return the number that a VARINT field holds."""
    return _varint(data, field.start, field.end, _VALUE_BYTES)[0]


def encode_field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    return _encode(number << 3 | BYTES) + _encode(len(content)) + content


def _varint(data: Buffer, position: int, end: int, longest: int) -> tuple[int, int]:
    value = shift = 0
    last = min(end, position + longest)
    while position < last:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("truncated" if position == end else "a number longer than protobuf writes any")


def _encode(number: int) -> bytes:
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
