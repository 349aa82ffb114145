"""Slow nodes are named, with what makes them slow."""

from __future__ import annotations

import pytest

from accuquant.units.node_times import Spent, slow_nodes


@pytest.mark.parametrize(
    ("computing", "why"),
    [(1.0, "it waits for its disk or the network"), (8.0, "its processor is slow or shared")],
)
def test_a_slow_node_is_named_with_the_reason(computing: float, why: str) -> None:
    spent = {"a": [Spent(2.0, 2.0)] * 5, "b": [Spent(2.5, 2.0)] * 4, "c": [Spent(9.0, computing)] * 3}
    assert slow_nodes(spent) == [f"c: a unit takes 9.0 s, elsewhere 2.0 s; {why}"]


@pytest.mark.parametrize(
    "spent",
    [
        {"a": [Spent(9.0, 1.0)] * 9},
        {"a": [Spent(2.0, 2.0)] * 5, "b": [Spent(9.0, 1.0)] * 2},
        {"a": [Spent(2.0, 2.0)] * 5, "b": [Spent(5.9, 1.0)] * 5},
        {"a": [Spent(0.01, 0.01)] * 5, "b": [Spent(0.9, 0.01)] * 5},
    ],
)
def test_one_node_few_units_small_differences_and_short_units_say_nothing(
    spent: dict[str, list[Spent]],
) -> None:
    assert slow_nodes(spent) == []
