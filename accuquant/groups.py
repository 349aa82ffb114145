"""Step groups: half-open ranges of timesteps that share activation qparams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from accuquant.errors import UsageError


@dataclass(frozen=True)
class StepGroups:
    """Contiguous, disjoint ranges of timestep values, the noisiest first.

    `edges` [G + 1] falls strictly; group g holds the timesteps `edges[g + 1] <= t < edges[g]`, and group 0
    `edges[0]` too: flow matching starts at the end of its training schedule. It is keyed by timestep value,
    not by loop index, so another number of steps still finds its group:

        StepGroups.from_timesteps([900, 600, 300, 0], group_size=2, num_train_timesteps=1000)
        -> edges (1000.0, 450.0, 0.0): t = 999 is in group 0, t = 449 in group 1
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges = tuple(float(edge) for edge in self.edges)
        object.__setattr__(self, "edges", edges)
        falling = all(high > low for high, low in pairwise(edges))
        if len(edges) < 2 or not falling or not all(map(math.isfinite, edges)):
            raise UsageError(
                "step groups",
                got=f"edges {edges}",
                expected="at least two finite edges that fall strictly, like (1000, 500, 0)",
                remedy="Give the timestep bounds from the noisiest to the cleanest",
            )

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def interior_edges(self) -> tuple[float, ...]:
        """The G - 1 edges between groups; the group of t is the number of them above t."""
        return self.edges[1:-1]

    def find(self, timestep: float) -> int:
        """Return the group of `timestep`; raise UsageError where it was not calibrated."""
        t = float(timestep)
        if not self.edges[-1] <= t <= self.edges[0]:
            raise UsageError(
                f"timestep {t:g}",
                got="a value outside the calibrated range",
                expected=f"a timestep in [{self.edges[-1]:g}, {self.edges[0]:g}]",
                remedy="Sample inside that range, or calibrate again with a schedule that covers it",
            )
        return sum(t < edge for edge in self.interior_edges)

    def steps_of(self, timesteps: Sequence[float]) -> list[list[int]]:
        """Return, for each group, the indices of `timesteps` that lie in it."""
        members: list[list[int]] = [[] for _ in range(len(self))]
        for step, timestep in enumerate(timesteps):
            members[self.find(timestep)].append(step)
        return members

    @classmethod
    def from_timesteps(
        cls, timesteps: Sequence[float], *, group_size: int, num_train_timesteps: int
    ) -> StepGroups:
        """Split a sampler's falling timesteps into groups of `group_size` consecutive steps.

        The last group may be shorter (AccuQuant, arXiv 2510.20348, overview figure). An edge lies
        halfway between the neighbours it parts; the outer edges are 0 and `num_train_timesteps`, so
        every timestep of the training schedule has a group. Repeated timesteps (Heun calls the
        network twice at one timestep) stay in one group.
        """
        ts = [float(t) for t in timesteps]
        if not ts or any(later > earlier for earlier, later in pairwise(ts)):
            raise UsageError(
                "timesteps",
                got=f"{ts[:4]}...",
                expected="a falling sequence of at least one timestep",
                remedy="Call set_timesteps on the scheduler first",
            )
        if group_size < 1:
            raise UsageError(
                "group size",
                got=str(group_size),
                expected="an integer of at least 1",
                remedy="Give --group-size 5, for example",
            )
        top = max(float(num_train_timesteps), math.floor(ts[0]) + 1.0)
        edges = [top]
        for start in range(group_size, len(ts), group_size):
            edge = (ts[start - 1] + ts[start]) / 2
            if ts[start - 1] > ts[start] and edge < edges[-1]:
                edges.append(edge)
        edges.append(min(0.0, ts[-1]))
        return cls(tuple(edges))
