"""How long work tells its caller where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: Told what happens now and the share of the work that is done, from 0 to 1.
Share = Callable[[str, float], None]
#: (steps done, steps in all), counted over all batches.
Steps = Callable[[int, int], None]


class Progress(Protocol):
    """Receives the stages of a long computation; the command line draws bars from it."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` units; the stage before is over."""

    def advance(self, units: int = 1) -> None:
        """Say that `units` more of the current stage are done."""

    def message(self, text: str) -> None:
        """Say one line that should stay on the screen."""


class Silent:
    """A Progress that shows nothing."""

    def stage(self, name: str, total: int) -> None:
        """Ignore the stage."""

    def advance(self, units: int = 1) -> None:
        """Ignore the units."""

    def message(self, text: str) -> None:
        """Ignore the line."""


class AtHome:
    """A Progress that hands everything on in this process; a copy that travels to another is told in vain."""

    def __init__(self, shown: Progress) -> None:
        self.stage, self.advance, self.message = shown.stage, shown.advance, shown.message

    def __reduce__(self) -> tuple[object, ...]:
        return Silent, ()
