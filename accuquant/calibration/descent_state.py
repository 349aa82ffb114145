"""The state of a gradient descent in a file, so that an interrupted one goes on at its last iterations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from accuquant.units.tensor_tree import Tree, read_tree, write_tree

#: Seconds of work that a kill may cost, an iteration aside.
EVERY = 60.0


class Stateful(Protocol):
    """What gives its state as a tree, and takes it back: torch's optimizers and schedules, the judges."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Go back to a state."""


class DescentState:
    """Keeps the parameters and all else that an iteration depends on, at most every minute.

    With no path it keeps nothing. A state that cannot be read counts as none: then the descent begins anew.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._found = None if path is None else read_tree(path)
        self._last = time.monotonic()

    def of(self, name: str) -> Tree:
        """Return the state that `name` had when the last run kept it, or None."""
        return None if self._found is None else self._found["parts"][name]

    @torch.no_grad()
    def resume(self, parameters: Sequence[Tensor], parts: Mapping[str, Stateful]) -> int:
        """Bring `parameters` and `parts` to what was kept; return the iterations that were done, or 0."""
        if self._found is None:
            return 0
        for parameter, value in zip(parameters, self._found["parameters"], strict=True):
            parameter.copy_(value.to(parameter.device))
        for name, part in parts.items():
            part.load_state_dict(self._found["parts"][name])
        return int(self._found["iterations"])

    def keep(self, iterations: int, parameters: Sequence[Tensor], parts: Mapping[str, Stateful]) -> None:
        """Write the state after so many iterations where the last one is old enough."""
        if self._path is None or time.monotonic() - self._last < EVERY:
            return
        write_tree(
            self._path,
            {
                "iterations": iterations,
                "parameters": list(parameters),
                "parts": {name: part.state_dict() for name, part in parts.items()},
            },
        )
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget the state: what it led to is kept."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
