"""The model of a schedule: measured units on so many workers, each taking the next as it becomes free."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds that handing out a unit and taking its result costs the process that does so; units queue for it.
OVERHEAD = 0.004


@dataclass(frozen=True)
class Measured:
    """A stage of the plain loop: `maps` of units, seconds each, and seconds `alone`, which nobody shares.

    Maps follow one another: the next begins when all units of the one before are done.
    """

    maps: tuple[tuple[float, ...], ...]
    alone: float

    @property
    def count(self) -> int:
        """How many units there are."""
        return sum(map(len, self.maps))

    @classmethod
    def of(cls, run: dict[str, Any], stage: str, names: Sequence[str]) -> Measured:
        """Take a stage from what cluster_run.py measured; `names` are those of its maps."""
        maps = tuple(tuple(units) for name in names for units in run["units"].get(name, []))
        whole = float(run["stages"].get(stage, 0.0))
        return cls(maps, max(0.0, whole - sum(map(sum, maps))))


def makespan(units: Sequence[float], workers: int, overhead: float = OVERHEAD) -> float:
    """Return when the last of `units` is done: in their order, each by the first worker that is free."""
    free, dispatched = [0.0] * min(workers, max(1, len(units))), 0.0
    for seconds in units:
        dispatched = max(dispatched + overhead, heapq.heappop(free) + overhead)
        heapq.heappush(free, dispatched + seconds)
    return max(free)


def predicted(measured: Measured, workers: int) -> float:
    """Return the seconds that a stage takes on so many workers."""
    return measured.alone + sum(makespan(units, workers) for units in measured.maps)
