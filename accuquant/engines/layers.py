"""The layers of a finished engine, as the builder's verbose log describes them."""

from __future__ import annotations

from collections.abc import Iterable

_LAYER = "LayerType: "


def layer_lines(log: Iterable[str]) -> list[str]:
    """Return the line of each layer, in the order in which the engine runs them.

    Empty where the engine was built without detailed profiling verbosity.
    """
    return [line for line in log if line.startswith("Name: ") and _LAYER in line]
