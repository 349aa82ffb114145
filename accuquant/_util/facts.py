"""Read typed facts from JSON that somebody else may have written, checked before anything uses them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Facts = TypeVar("Facts")

_ONE_LINE = r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z"
#: One line of text; what could move a cursor or break a line is no part of it.
Text = Annotated[str, Meta(max_length=4096, pattern=_ONE_LINE)]
#: The same, as the name of a tensor, a layer, a class.
Name = Annotated[str, Meta(min_length=1, max_length=400, pattern=_ONE_LINE)]
#: The same, as a path.
LongName = Annotated[str, Meta(min_length=1, max_length=4096, pattern=_ONE_LINE)]
#: A finite number.
Real = Annotated[float, Meta(ge=-1.7976931348623157e308, le=1.7976931348623157e308)]
#: A whole number that counts something in a file.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]

_MOST_BYTES = 64 << 20
_DEEPEST = 64


class FactsError(ValueError):
    """What is wrong with the content of a file, in one line; readers turn it into an error of their own."""


def read_json(path: Path) -> Any:
    """Return the JSON values in `path`. Raises FactsError for others, OSError for no file."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise FactsError(f"more than {_MOST_BYTES >> 20} MB of JSON")
    return parse_json(data)


def parse_json(text: str | bytes) -> Any:
    """Return the values in JSON text, NaN and Infinity too, as Python writes them. Raises FactsError."""
    try:
        content = text if isinstance(text, str) else text.decode("utf-8")
        values = json.loads(content)
        if "\\ud" in content or "\\uD" in content:  # halves of surrogate pairs are no text
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise FactsError(f"JSON nested more than {_DEEPEST} deep") from None
    except ValueError as fault:  # syntax, encoding, numbers of more than 4300 digits
        raise FactsError(f"{type(fault).__name__}: {fault}") from fault
    if _deeper_than(values, _DEEPEST):
        raise FactsError(f"JSON nested more than {_DEEPEST} deep")
    return values


def as_facts(values: Any, kind: type[Facts]) -> Facts:
    """Return JSON values as a dataclass, every field of its annotated type. Raises FactsError.

    Fields that the class does not have are ignored: that is how a format grows.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as fault:
        what, _, where = str(fault).partition(" - at ")
        what = re.sub(r"Expected `str` matching regex .*", "text of another form", what)
        what = re.sub(r"Object missing required field `(\w+)`", r"no field '\1'", what).replace("`", "")
        field = where.strip("`").removeprefix("$").removeprefix(".")
        raise FactsError(f"{field}: {what}" if field else what) from fault
    except UnicodeEncodeError as fault:
        raise FactsError(f"text that is no Unicode ({fault})") from fault


def read_facts(path: Path, kind: type[Facts]) -> Facts:
    """Return the facts in the JSON file `path`. Raises FactsError and OSError."""
    return as_facts(read_json(path), kind)


def _deeper_than(values: Any, limit: int) -> bool:
    level = [values]
    for _ in range(limit):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True
