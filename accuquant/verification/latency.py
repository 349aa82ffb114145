"""Time network calls fairly: interleaved, so that a busy moment hits every candidate alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """The time of one network call: median and fastest of `rounds` calls on `batch_size` images."""

    name: str
    median_ms: float
    fastest_ms: float
    batch_size: int
    rounds: int


def measure_latencies(
    calls: Mapping[str, Callable[[], object]], *, batch_size: int, rounds: int = 15, warm_up: int = 2
) -> tuple[Latency, ...]:
    """Time each of `calls` in turn, `rounds` times, after `warm_up` untimed rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - began) * 1e3)
    return tuple(
        Latency(name, statistics.median(values), min(values), batch_size, rounds)
        for name, values in times.items()
    )
