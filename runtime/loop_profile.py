"""Where the seconds of sampling go: one part of the loop has the time at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Part = Literal[
    "loading", "text encoder", "image encoder", "network", "drop-in", "scheduler", "guidance", "decoder",
    "rest",
]  # fmt: skip
#: Part -> what counts as it, in the order of a run.
PARTS: dict[Part, str] = {
    "loading": "importing, compiling, releasing",
    "text encoder": "with the tokenizer",
    "image encoder": "images to latents",
    "network": "in its engine",
    "drop-in": "checks and conversions around it",
    "scheduler": "or sampler, with its noise",
    "guidance": "all else between network calls",
    "decoder": "latents to images",
    "rest": "before the first step, after the last",
}
#: What a denoising step does on top of its network calls.
OVERHEAD: tuple[Part, ...] = ("drop-in", "scheduler", "guidance")
#: What a scheduler's step leaves open: guidance if another network call follows, else the rest.
_OPEN = "between"
#: What begins or ends a call of the pipeline.
_APART: tuple[Part, ...] = ("text encoder", "image encoder", "decoder")
FORMAT_VERSION = 1


class LoopProfile:
    """The seconds of each part of one or more runs, added up.

        profile = accuquant.LoopProfile()
        accuquant.sample("out", num_images=4, profile=profile)
        print(profile.seconds["network"], profile.overhead)

    It is running from when it is made, as `first`, until `end`. `calls` counts how often a part was entered,
    `ran_by` says what ran one ("openvino", "torch"). `now` returns seconds, any origin.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, *, first: Part = "rest") -> None:
        self._now = now
        self._part: str = first
        self._since = now()
        self._seconds: dict[str, float] = {}
        self._running = True
        self.calls: dict[Part, int] = {}
        self.ran_by: dict[Part, str] = {}

    @property
    def seconds(self) -> dict[Part, float]:
        """The seconds of each part so far, in the order of PARTS; parts that never ran are left out."""
        self._count()
        found = {part: self._seconds.get(part, 0.0) for part in PARTS}
        found["rest"] += self._seconds.get(_OPEN, 0.0)
        return {part: seconds for part, seconds in found.items() if seconds > 0}

    @property
    def total(self) -> float:
        """All seconds but those of loading."""
        return sum(seconds for part, seconds in self.seconds.items() if part != "loading")

    @property
    def overhead(self) -> float | None:
        """What steps take on top of the network, as a share of its time; None where it never ran."""
        seconds = self.seconds
        network = seconds.get("network", 0.0)
        return sum(seconds.get(part, 0.0) for part in OVERHEAD) / network if network else None

    @contextmanager
    def inside(self, part: Part, then: Part | None = None) -> Iterator[None]:
        """Count the block as `part`, what follows as `then`, or as what the block interrupted."""
        if part in _APART:
            self.settle()
        before = self._part
        self._switch(part)
        if part != "loading":  # asked for before every call, and mostly done already
            self.calls[part] = self.calls.get(part, 0) + 1
        try:
            yield
        finally:
            self._switch(then or before)

    @contextmanager
    def calling(self, part: Literal["network", "drop-in"]) -> Iterator[None]:
        """Count the block as the network, or as the drop-in that calls it; what follows is guidance."""
        self._count()
        self._seconds["guidance"] = self._seconds.get("guidance", 0.0) + self._seconds.pop(_OPEN, 0.0)
        with self.inside(part, then="guidance"):
            yield

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Count the block as the scheduler; what follows is guidance if the network is called again."""
        with self.inside("scheduler"):
            yield
        self._switch(_OPEN)

    def settle(self) -> None:
        """Count what the last step left open as the rest: it was the last of its call."""
        self._count()
        self._seconds["rest"] = self._seconds.get("rest", 0.0) + self._seconds.pop(_OPEN, 0.0)
        if self._part == _OPEN:
            self._part = "rest"

    def end(self) -> None:
        """Stop the clock."""
        self._count()
        self._running = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "seconds": dict(self.seconds),
            "total_seconds": self.total,
            "calls": dict(self.calls),
            "ran_by": dict(self.ran_by),
            "overhead": self.overhead,
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a table's cells: part, seconds, share of all but loading, calls, what counts as the part."""
        total = self.total
        return [
            (
                part if part not in self.ran_by else f"{part} ({self.ran_by[part]})",
                f"{seconds:.3f}",
                "" if part == "loading" else f"{seconds / total:.1%}",
                str(self.calls.get(part, "")),
                PARTS[part],
            )
            for part, seconds in self.seconds.items()
        ]

    def _count(self) -> None:
        if self._running:
            now = self._now()
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
            self._since = now

    def _switch(self, part: str) -> None:
        self._count()
        self._part = part


@contextmanager
def counted(profile: LoopProfile | None, part: Part, then: Part | None = None) -> Iterator[None]:
    """Count the block as `part`, where there is a profile; see LoopProfile.inside."""
    if profile is None:
        yield
    else:
        with profile.inside(part, then):
            yield
