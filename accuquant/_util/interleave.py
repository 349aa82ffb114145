"""Time several calls in turn, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Times:
    """Milliseconds of one candidate, one value a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median in milliseconds."""
        return float(np.median(self.values))

    @property
    def fastest(self) -> float:
        """The least time in milliseconds."""
        return min(self.values)

    @property
    def p90(self) -> float:
        """The 90th percentile in milliseconds."""
        return self.percentile(90)

    def percentile(self, share: float) -> float:
        """Return the time that `share` percent of the rounds do not exceed, in milliseconds."""
        return float(np.percentile(self.values, share))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"median_ms": self.median, "p90_ms": self.p90, "ms": list(self.values)}


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int,
    pause: float = 0.0,
    lead_in: int = 0,
    after_round: Callable[[], object] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> dict[str, Times]:
    """Run `calls` as A B C A B C ...: `warm_up` untimed rounds, then `rounds` timed ones.

    `pause` seconds before each call let another engine's threads stop spinning; `lead_in` untimed calls
    before each put its own data into the caches, as in a denoising loop, where it is called again and again.
    `after_round` is called after each round, the untimed ones too. `clock` gives seconds, by default
    time.perf_counter's; time.process_time counts what this process computed, whatever else the machine does.
    """
    clock = clock or time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            time.sleep(pause)
            for _ in range(lead_in):
                call()
            began = clock()
            call()
            took = (clock() - began) * 1e3
            if turn >= warm_up:
                times[name].append(took)
        after_round()
    return {name: Times(tuple(values)) for name, values in times.items()}
