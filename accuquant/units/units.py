"""Units of work: what a stage computes piece by piece, and a folder that keeps the pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from .tensor_tree import Tree, read_tree, size_of, write_tree

#: Seconds after which what was computed goes to a file, and bytes: what a kill costs at most, one unit aside.
EVERY = 10.0
_BYTES = 64 << 20

Compute = Callable[[str], Tree]


class Engine(Protocol):
    """Where units are computed: here, one after the other, or by the workers of a cluster."""

    #: Whether units run in other processes: then nobody here hears of a unit before it is done.
    away: bool

    def results(
        self, stage: str, units: Sequence[str], compute: Compute, *, anywhere: bool = False
    ) -> Generator[tuple[str, Tree], None, None]:
        """Yield each of `units` with `compute(unit)`, in any order, as soon as it is known.

        `anywhere` says that the units need no device but the CPU.
        """


class Serial:
    """Computes units in this process, in their order: the default, and what others have to equal."""

    away = False

    def results(
        self, stage: str, units: Sequence[str], compute: Compute, *, anywhere: bool = False
    ) -> Generator[tuple[str, Tree], None, None]:
        """Yield each unit with its result."""
        for unit in units:
            yield unit, compute(unit)


SERIAL = Serial()


class Units(Protocol):
    """Computes the units of a stage.

    A unit depends on earlier stages and on its own name, never on other units or on their order: they may
    run anywhere. Whoever sums results does so in the order of the units, so that the sum has the same bits
    wherever they ran. Where they run elsewhere, `compute` travels there: what it refers to is copied, but for
    the network that the workers have opened themselves, and for what is `PerWorker`.
    """

    @property
    def away(self) -> bool:
        """Whether units run in other processes."""

    def map(
        self,
        stage: str,
        units: Sequence[str],
        compute: Compute,
        done: Callable[[], None],
        *,
        anywhere: bool = False,
    ) -> list[Tree]:
        """Return `compute(unit)` for each of `units`, in their order; `done` is called once for each of them.

        A result is a tree of tensors on the CPU, numbers and texts. `anywhere` says that the units need no
        device but the CPU.
        """


class InMemory:
    """Computes units, and keeps none."""

    def __init__(self, engine: Engine = SERIAL) -> None:
        self._engine = engine

    @property
    def away(self) -> bool:
        """Whether units run in other processes."""
        return self._engine.away

    def map(
        self,
        stage: str,
        units: Sequence[str],
        compute: Compute,
        done: Callable[[], None],
        *,
        anywhere: bool = False,
    ) -> list[Tree]:
        """Return the results of all units."""
        results = {}
        with closing(self._engine.results(stage, units, compute, anywhere=anywhere)) as computed:
            for unit, result in computed:
                results[unit] = result
                done()
        return [results[unit] for unit in units]


class KeptUnits:
    """Computes units, and keeps the results in a folder: none is computed twice.

    Numbers of single layers are small and many: what was computed in ten seconds goes into one file.
    """

    def __init__(self, folder: Path, engine: Engine = SERIAL) -> None:
        self._folder, self._engine = folder, engine

    @property
    def away(self) -> bool:
        """Whether units run in other processes."""
        return self._engine.away

    def map(
        self,
        stage: str,
        units: Sequence[str],
        compute: Compute,
        done: Callable[[], None],
        *,
        anywhere: bool = False,
    ) -> list[Tree]:
        """Return the results of all units, those from an earlier run as they were."""
        kept = self._read(stage)
        fresh = _Fresh(self._folder, stage)
        missing = [unit for unit in units if unit not in kept]
        for _ in range(len(units) - len(missing)):
            done()
        try:
            with closing(self._engine.results(stage, missing, compute, anywhere=anywhere)) as computed:
                for unit, result in computed:
                    kept[unit] = result
                    fresh.add(unit, result)
                    done()
        finally:
            fresh.write()
        return [kept[unit] for unit in units]

    def _read(self, stage: str) -> dict[str, Tree]:
        kept: dict[str, Tree] = {}
        for path in _files(self._folder, stage):
            kept |= read_tree(path) or {}
        return kept


class _Fresh:
    """What was computed since the last file."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder, self._stage = folder, stage
        self._results: dict[str, Tree] = {}
        self._since, self._bytes = time.monotonic(), 0

    def add(self, unit: str, result: Tree) -> None:
        self._results[unit] = result
        self._bytes += size_of(result)
        if time.monotonic() - self._since >= EVERY or self._bytes >= _BYTES:
            self.write()

    def write(self) -> None:
        if not self._results:
            return
        results, self._results = self._results, {}  # where the disk is full, they are not tried again
        there = _files(self._folder, self._stage)
        number = int(there[-1].stem) + 1 if there else 0
        write_tree(self._folder / self._stage / f"{number:06d}.safetensors", results)
        self._since, self._bytes = time.monotonic(), 0


def _files(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / stage).glob("*.safetensors"))


def unit_seed(seed: int, unit: Iterable[int]) -> int:
    """Return the seed of a unit's random numbers: they are its own, whatever ran before it.

    `unit` is what tells it from others, such as the index of its batch. Seeds are spread by numpy's
    SeedSequence, whose results are the same in every release: neighbours have nothing in common.
    """
    return int(np.random.SeedSequence([seed, *unit]).generate_state(1, np.uint64)[0] >> np.uint64(1))
