from __future__ import annotations

import time

from accuquant.verification.measure.latency import measure_latencies


def test_candidates_take_turns() -> None:
    order: list[str] = []
    measure_latencies(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, batch_size=1, rounds=3, warm_up=1
    )
    assert "".join(order) == "aabb" * 4


def test_the_warm_up_and_the_call_before_are_not_timed() -> None:
    waits = iter([0.2, 0.2, 0.2, 0.0, 0.2, 0.0])
    (latency,) = measure_latencies({"a": lambda: time.sleep(next(waits))}, batch_size=4, rounds=2, warm_up=1)
    assert latency.median_ms < 100
    assert (latency.name, latency.batch_size, latency.rounds) == ("a", 4, 2)
    assert 0 < latency.fastest_ms <= latency.median_ms
