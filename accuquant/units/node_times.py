"""Which node of a cluster is slow, told from the seconds that its units take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

#: A node is slow whose units take so many times as long as those of all others.
_FACTOR = 3.0
#: Fewer units than these say nothing.
_UNITS = 3
#: Seconds below which nobody cares.
_SECONDS = 1.0


@dataclass(frozen=True)
class Spent:
    """What a unit took: seconds by the clock, and of the processor, over all threads."""

    seconds: float
    computing: float


def slow_nodes(spent: Mapping[str, Sequence[Spent]]) -> list[str]:
    """Return a line for each node that is far slower than the others, with what it waits for.

    `spent` are the units of one stage by node.
    """
    lines = []
    for node, units in spent.items():
        others = [unit.seconds for other, theirs in spent.items() if other != node for unit in theirs]
        if min(len(units), len(others)) < _UNITS:
            continue
        usual, here = median(others), median(unit.seconds for unit in units)
        if here < _SECONDS or here < _FACTOR * usual:
            continue
        share = sum(unit.computing for unit in units) / sum(unit.seconds for unit in units)
        why = "it waits for its disk or the network" if share < 0.5 else "its processor is slow or shared"
        lines.append(f"{node}: a unit takes {here:.1f} s, elsewhere {usual:.1f} s; {why}")
    return lines
