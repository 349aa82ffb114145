"""An engine whose units run as in other processes, without any."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import Any

from accuquant.pipelines.source import Source
from accuquant.units.job import opened
from accuquant.units.travelling import Unpacker, pack
from accuquant.units.units import Compute


class OtherProcess:
    """An engine with all that a worker's process has of its own: networks, and copies of what units need.

    Each of its workers computes some of the units, drawn by a seed, and their results come in no order.
    """

    away = True

    def __init__(self, source: Source, job: Any, workers: int) -> None:
        self._source, self._rng = source, random.Random(workers)
        self.computed: list[str] = []
        self._workers = []
        for _ in range(workers):
            there = Unpacker({}).unpack(pack(job, {}).data, lambda _token: b"")
            with opened(there, "node", job.device) as roots:
                assert roots["network"] is not source.network
                self._workers.append(Unpacker(roots))

    def results(
        self, stage: str, units: Sequence[str], compute: Compute, *, anywhere: bool = False
    ) -> Generator[tuple[str, Any], None, None]:
        parcel = pack(compute, {"network": self._source.network})
        copies = [worker.unpack(parcel.data, parcel.parts.__getitem__) for worker in self._workers]
        self.computed.append(stage)
        for unit in self._rng.sample(list(units), len(units)):
            yield unit, self._rng.choice(copies)(unit)
