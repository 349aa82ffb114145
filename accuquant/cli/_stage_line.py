"""What a line says of a stage that takes long, and when one is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from accuquant.cli._durations import duration

#: Seconds between two lines, and before the first one of a stage.
INTERVAL = 30.0


class StageLine:
    """Follows a stage; `due` may be asked from another thread, while a unit takes long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock that tells seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._last = ""
        self._begin("", 0)

    def _begin(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._begun = self._reached = self._said = self._clock()

    def begin(self, name: str, total: int) -> None:
        """Begin a stage of `total` units; 0 where nobody knows."""
        with self._lock:
            self._begin(name, total)

    def reach(self, done: int, total: int | None = None, name: str | None = None) -> None:
        """Say how many units are done; the stage goes on with another `total` or `name` where given."""
        with self._lock:
            if done != self._done:
                self._done, self._reached = done, self._clock()
            self._total = self._total if total is None else total
            self._name = name or self._name

    def advance(self, units: int) -> None:
        """Say that `units` more are done."""
        self.reach(self._done + units)

    def due(self) -> str | None:
        """Return the line to print now, or None: too early, or nothing that was not said before."""
        with self._lock:
            now = self._clock()
            if not self._name or now - self._said < INTERVAL:
                return None
            line = self._line(now)
            if line == self._last:
                return None
            self._said, self._last = now, line
            return line

    def _line(self, now: float) -> str:
        taken = now - self._begun
        if self._total <= 0:
            return f"{self._name}: {duration(taken)}"
        line = f"{self._name}: {min(1.0, self._done / self._total):.0%} after {duration(taken)}"
        if not self._done:
            return line
        # units differ little: what is left of the stage, from the last one that ended
        left = (self._reached - self._begun) * self._total / self._done - taken
        return f"{line}, about {duration(left)} left" if left > 0 else line
