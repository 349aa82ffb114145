"""Bound the numbers of a configuration before diffusers builds what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accuquant._util.facts import FactsError, read_json
from accuquant.errors import SourceError

#: Keys that say how often something is built, or how many steps a table has.
_REPEATED = ("layers", "blocks", "heads", "_per_block")
#: The largest networks have 60 layers a block, widths of 15,360 and tables of 150,000 entries.
_MOST_REPEATED, _LARGEST = 1024, 2**20
#: What diffusers itself writes as -Infinity: no clipping.
_UNBOUNDED = ("lambda_min_clipped",)


def check_numbers(path: Path) -> None:
    """Raise SourceError for a number in the JSON at `path` that no diffusion network or scheduler has.

    A file that is missing or no JSON is left to diffusers, whose error says so.
    """
    try:
        config = read_json(path)
    except (OSError, FactsError):
        return
    for key, value in _numbers("", config):
        largest = _MOST_REPEATED if any(part in key for part in _REPEATED) else _LARGEST
        if abs(value) > largest and key not in _UNBOUNDED:
            raise _out_of_bounds(path, key, f"{value:.4g}", f"at most {largest}")


def _numbers(key: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of a configuration, those in lists too, with the key that they belong to."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        # a float has no more than 308 digits, an int may have any number
        yield key, min(value, 10**300) if value > 0 else max(value, -(10**300))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(name, inner)
    elif isinstance(value, list):
        yield f"{key} layers", len(value)
        for inner in value:
            yield from _numbers(key, inner)


def _out_of_bounds(path: Path, key: str, got: str, expected: str) -> SourceError:
    return SourceError(
        f"'{path}'",
        got=f"{key[:80]!r} {got}",
        expected=f"{expected}, as any diffusion model",
        remedy="The file is damaged or was changed: copy or download the pipeline again",
    )
