"""A calibration in a process of its own, on so many workers: seconds of each stage, and of each unit."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: One thread a process: workers of one machine would take each other's cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
#: A calibration with every stage in it, small enough to be repeated.
SETTINGS: dict[str, Any] = {
    "steps": 6, "group_size": 1, "num_trajectories": 16, "batch_size": 2, "iterations": 2,
    "shared_iterations": 2, "sensitivity": True, "probe": False, "weight_bits": 4, "activation_bits": 6,
}  # fmt: skip


def run_apart(workers: int, **changes: Any) -> dict[str, Any]:
    """Calibrate in a fresh process -> what `measure` returns; 0 workers: the loop.

    `changes` are settings, and "source" the folder of another network than the bundled image model.
    """
    done = subprocess.run(
        [sys.executable, __file__, str(workers), json.dumps(SETTINGS | changes)],
        env=os.environ | _ENVIRONMENT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Timed:
    """An engine that notes how long each unit takes, and each stage."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.away = engine.away
        self.units: dict[str, list[list[float]]] = {}
        self.seconds: dict[str, float] = {}

    def results(
        self, stage: str, units: Sequence[str], compute: Any, *, anywhere: bool = False
    ) -> Generator[tuple[str, Any], None, None]:
        """Hand on what the engine computes."""
        begun = time.perf_counter()
        taken: list[float] = []
        self.units.setdefault(stage, []).append(taken)

        def timed(unit: str) -> Any:
            since = time.perf_counter()
            result = compute(unit)
            taken.append(time.perf_counter() - since)
            return result

        yield from self._engine.results(stage, units, compute if self.away else timed, anywhere=anywhere)
        if self.away:
            pools = self._engine._pools.values()
            taken += [spent.seconds for pool in pools for spents in pool.spent.values() for spent in spents]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


@contextmanager
def ready(source: Any, workers: int) -> Iterator[Timed]:
    """Give an engine whose workers have opened their networks; the loop of this process for 0."""
    from accuquant.pipelines.source_job import source_job, source_roots
    from accuquant.units.units import SERIAL, InMemory

    if not workers:
        yield Timed(SERIAL)
        return
    from accuquant.units.ray_cluster import RayCluster

    with RayCluster(source_job(source), source_roots(source), workers=workers) as engine:
        seen: set[int] = set()
        while len(seen) < workers:
            names = [str(k) for k in range(4 * workers)]
            seen |= set(InMemory(engine).map("ready", names, _pid, lambda: None))
        yield Timed(engine)


def _pid(_unit: str) -> int:
    time.sleep(0.05)
    return os.getpid()


def housekeeping() -> float:
    """Return the processor's seconds that Ray's own processes have taken: all but the workers'."""
    import psutil

    taken = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times, line = process.cpu_times(), " ".join(process.cmdline())
            taken += 0.0 if "_Served" in line else times.user + times.system
    return taken


def measure(workers: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Calibrate in this process."""
    from accuquant._util.progress import Silent
    from accuquant._util.stage_clock import StageClock
    from accuquant.bundled import FASHION_DDPM
    from accuquant.calibration import CalibrationSettings, calibrate
    from accuquant.pipelines.source import load_source
    from accuquant.units.cluster import Cluster

    settings = dict(settings)
    source, begun = load_source(settings.pop("source", None) or FASHION_DDPM), time.perf_counter()
    module: Any = importlib.import_module("accuquant.calibration.calibrate")
    with ready(source, workers) as engine, tempfile.TemporaryDirectory() as folder:
        startup = time.perf_counter() - begun

        @contextmanager
        def engine_of(*_arguments: Any) -> Iterator[Timed]:
            yield engine

        module.engine_of = engine_of
        clock, output = StageClock(Silent()), Path(folder) / "recipe.safetensors"
        checked = CalibrationSettings(**settings)
        since, kept_house = time.perf_counter(), housekeeping()
        calibrate(
            source, checked, output=output, progress=clock, cluster=Cluster(workers) if workers else None
        )
        whole = time.perf_counter() - since
        clock.end()
        kept_house = housekeeping() - kept_house
        digest = hashlib.sha256(output.read_bytes()).hexdigest()
    return {
        "sha256": digest, "startup": startup, "whole": whole, "stages": clock.seconds, "units": engine.units,
        "shared": engine.seconds, "housekeeping": kept_house,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), json.loads(sys.argv[2]))))
