"""Time network calls fairly: interleaved, so that a busy moment hits every candidate alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accuquant._util.interleave import time_interleaved


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
    """Time the second of two calls of each of `calls` in turn, `rounds` times, after `warm_up` rounds."""
    times = time_interleaved(calls, rounds=rounds, warm_up=warm_up, lead_in=1)
    return tuple(
        Latency(name, taken.median, min(taken.values), batch_size, rounds) for name, taken in times.items()
    )
