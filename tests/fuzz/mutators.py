"""Seeded mutations of files: of JSON by its structure, of anything by its bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: (rng, data) -> other data
Mutator = Callable[[random.Random, bytes], bytes]

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    0.5,
    1e308,
    -1e308,
    10**30,
    10**400,
    2**31,
    2**63,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "0",
    "text",
    "\x1b[2J\x1b]0;title\x07",
    "\u202ereversed",
    "two\nlines",
    "null\0byte",
    "\ud800",
    "x" * 100_000,
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "C:\\secret",
    ".",
    "a/../../b",
    "$(touch /tmp/owned)",
    "<script>alert(1)</script>",
    "| --- |\n---\nbase_model: x",
    "F8_E4M3",
    [],
    {},
    [[]],
    [1, 2, 3],
    [{}],
    {"a": {"b": {}}},
    ["a"] * 1000,
)


#: Levels of JSON in which places are looked for.
_DEEPEST = 50


def mutate_json(rng: random.Random, values: Any) -> Any:
    """Return a copy of JSON values with one to three places changed."""
    changed = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = _mutate_once(rng, changed)
    return changed


def mutate_json_text(rng: random.Random, data: bytes) -> bytes:
    """Change JSON text by its structure mostly, sometimes by its bytes, sometimes into nothing but depth."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(rng, data)
    if kind < 0.2:
        opening = rng.choice(("[", '{"a":', '{"groups":[['))
        return (opening * rng.choice((100, 10**5))).encode()
    values = mutate_json(rng, json.loads(data))
    return json.dumps(values).encode()


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or blank bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del out[at : at + rng.randrange(1, 64)]
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
            case _:
                out[at : at + 4] = bytes(len(out[at : at + 4]))
    return bytes(out)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change a recipe: its metadata, the description of its tensors, or its bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.75:
        metadata = header["__metadata__"]
        key = next(iter(metadata))
        metadata[key] = mutate_json_text(rng, metadata[key].encode()).decode("utf-8", "replace")
    else:
        header = mutate_json(rng, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _mutate_once(rng: random.Random, values: Any) -> Any:
    places = list(_places(values))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(HOSTILE))
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1:
            holder[key] = _deep(rng.choice((70, 200)))
        case 2 if isinstance(holder, dict):
            holder[_text(rng)] = copy.deepcopy(rng.choice(HOSTILE))
        case 3 if isinstance(holder, dict):
            holder[_text(rng)] = holder.pop(key)
        case 4 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        case 5:
            other, there = rng.choice(places)
            holder[key] = copy.deepcopy(other[there] if there in other or isinstance(other, list) else None)
        case _:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return values


def _places(values: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:  # what was made deep already needs no more
        return
    if isinstance(values, dict):
        for key, value in values.items():
            yield values, key
            yield from _places(value, depth + 1)
    elif isinstance(values, list):
        for index, value in enumerate(values[:50]):
            yield values, index
            yield from _places(value, depth + 1)


def _text(rng: random.Random) -> str:
    return rng.choice([item for item in HOSTILE if isinstance(item, str)])


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value
