"""How long each stage of a long computation took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from .progress import Progress

#: "step group 3/10" counts with the others.
_COUNTED = re.compile(r" \d+/\d+$")


class StageClock:
    """A Progress that hands everything on to another, and adds up the seconds of each stage.

    Stages that differ in a number at their end ("step group 1/10", "step group 2/10") are one. What
    happens before the first counts as `loading`.
    """

    def __init__(self, shown: Progress, now: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._now = shown, now
        self._name, self._since = "loading", now()
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, total: int) -> None:
        """Begin a stage; the one before ends."""
        self.end()
        self._name = _COUNTED.sub("s", name)
        self._shown.stage(name, total)

    def advance(self, units: int = 1) -> None:
        """Hand the units on."""
        self._shown.advance(units)

    def message(self, text: str) -> None:
        """Hand the line on."""
        self._shown.message(text)

    def end(self) -> None:
        """Count the present stage up to now."""
        now = self._now()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._since = now

    def line(self) -> str:
        """Return the seconds in all, and of every stage that took one at least, in one line."""
        self.end()
        parts = [f"{name} {spent:.0f} s" for name, spent in self.seconds.items() if spent >= 0.5]
        return ", ".join([f"{sum(self.seconds.values()):.0f} s in all", *parts])
