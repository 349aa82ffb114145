"""Images a second against latency: several calls at a time in OpenVINO's streams, and batches as one call."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accuquant._util.processor import describe_processor
from accuquant._util.progress import Progress, Silent
from accuquant._util.real_model import real_model
from accuquant.bench.exported import feeds_of
from accuquant.bench.inputs import make_inputs
from accuquant.errors import UsageError
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.recipe import Recipe
from accuquant.runtime.openvino_runner import OpenVinoRunner


@dataclass(frozen=True)
class Setting:
    """How a network is served: `streams` calls at a time, `batch` rows in each."""

    streams: int
    batch: int


@dataclass(frozen=True)
class Load:
    """What a setting did: rows a second of each round, and the milliseconds of every call."""

    setting: Setting
    rows_per_second: tuple[float, ...]
    call_ms: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Rows a second, the median over the rounds."""
        return float(np.median(self.rows_per_second))

    @property
    def latency(self) -> float:
        """Milliseconds of one call, the median."""
        return float(np.median(self.call_ms))


@dataclass(frozen=True)
class ThroughputReport:
    """Every setting under full load. An image takes `steps` calls with `rows_per_image` rows each."""

    loads: tuple[Load, ...]
    steps: int
    rows_per_image: int
    processor: str
    num_threads: int | None
    rounds: int
    seconds: float

    @property
    def best(self) -> Load:
        """The setting that makes the most images."""
        return max(self.loads, key=lambda load: load.rate)

    @property
    def quickest(self) -> Load:
        """The setting that makes an image soonest: the one whose calls are shortest for each row they hold.

        A batch below `rows_per_image` cannot hold an image; where all are, the shortest call is taken.
        """
        holding = [load for load in self.loads if load.setting.batch >= self.rows_per_image]
        return min(holding or self.loads, key=lambda load: load.latency)

    def images_per_second(self, load: Load) -> float:
        """Return the images a second of the network alone."""
        return load.rate / (self.steps * self.rows_per_image)

    def seconds_per_image(self, load: Load) -> float:
        """Return the seconds from an image's first step to its last, the others beside it."""
        calls = self.steps * max(1.0, self.rows_per_image / load.setting.batch)
        return calls * load.latency / 1e3

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "processor": self.processor,
            "num_threads": self.num_threads,
            "steps": self.steps,
            "rows_per_image": self.rows_per_image,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "results": [self._result(load) for load in self.loads],
            "best": vars(self.best.setting),
            "quickest": vars(self.quickest.setting),
        }

    def _result(self, load: Load) -> dict[str, Any]:
        return {
            **vars(load.setting),
            "images_per_second": self.images_per_second(load),
            "seconds_per_image": self.seconds_per_image(load),
            "rows_per_second": list(load.rows_per_second),
            "call_ms": {str(share): float(np.percentile(load.call_ms, share)) for share in (10, 50, 90, 99)},
        }


def run_throughput(
    folder: Path,
    *,
    streams: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 2, 4),
    rounds: int = 3,
    seconds: float = 2.0,
    steps: int | None = None,
    num_threads: int | None = None,
    engine_precision: str = "auto",
    progress: Progress | None = None,
) -> ThroughputReport:
    """Keep an exported folder's network busy in OpenVINO, in every number of streams with every batch.

    Each setting is loaded for `seconds` in each of `rounds`, the settings in turn. Every one is a compiled
    model of its own, all in memory at once. Of a folder with a graph for each step group the first one is
    taken. `streams` None are 1, 2, 4, ... up to the threads, `steps` None the calibrated number. Raises
    EngineError for a folder that is damaged, UsageError for numbers below 1.
    """
    streams = powers_of_two(num_threads or _cores()) if streams is None else streams
    for name, values in (("--streams", streams), ("--batches", batches)):
        if not values or min(values) < 1:
            raise UsageError(
                name, got=str(list(values)), expected="numbers of at least 1", remedy=f"Give {name} 1,2"
            )
    shown, folder = progress or Silent(), Path(folder)
    manifest = Manifest.load(folder)
    count = manifest.steps(steps)
    manifest.check_files(folder)
    settings = [Setting(k, n) for k in dict.fromkeys(streams) for n in dict.fromkeys(batches)]
    with ExitStack() as stack:
        shown.stage("compiling for each setting", len(settings))
        servers = {}
        for setting in settings:
            servers[setting] = _Server(folder, manifest, setting, num_threads, engine_precision, stack)
            shown.advance()
        shown.stage("serving", rounds * len(settings))
        for _ in range(rounds):
            for server in servers.values():
                server.serve(seconds)
                shown.advance()
        loads = tuple(
            Load(setting, tuple(server.rates), tuple(server.call_ms)) for setting, server in servers.items()
        )
    guidance = Recipe.load(folder / RECIPE_NAME).facts.guidance
    rows = 1 if guidance is None else guidance.copies
    return ThroughputReport(loads, count, rows, describe_processor(), num_threads, rounds, seconds)


def powers_of_two(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to `most`."""
    return tuple(1 << k for k in range(most.bit_length()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Server:
    """A network compiled for one setting, and what its calls took."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        setting: Setting,
        num_threads: int | None,
        precision: Any,
        stack: ExitStack,
    ) -> None:
        import openvino

        runner = OpenVinoRunner(
            real_model(manifest.graph_paths(folder)[0]),
            num_threads=num_threads,
            num_streams=setting.streams,
            precision=precision,
        )
        stack.enter_context(runner)
        feeds = feeds_of(manifest, runner, make_inputs(manifest, setting.batch))
        compiled = runner.compiled(feeds)
        self._batch = setting.batch
        self._feeds = {index: feeds[spec.name] for index, spec in enumerate(runner.input_specs)}
        self._queue: Any = openvino.AsyncInferQueue(compiled, setting.streams)
        self._queue.set_callback(self._done)
        self._ended: list[tuple[float, float]] = []
        self.rates: list[float] = []
        self.call_ms: list[float] = []
        self._fill(setting.streams)  # the first call of each is slower

    def serve(self, seconds: float) -> None:
        """Keep every stream busy for `seconds`, and wait for what has begun."""
        self._ended.clear()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            self._fill(1, wait=False)
        self._queue.wait_all()
        last = max(end for _, end in self._ended)
        self.rates.append(len(self._ended) * self._batch / (last - began))
        self.call_ms += [1e3 * (end - start) for start, end in self._ended]

    def _fill(self, calls: int, *, wait: bool = True) -> None:
        for _ in range(calls):
            self._queue.get_idle_request_id()  # waits until one is free: a call begins when it is
            self._queue.start_async(self._feeds, time.perf_counter(), share_inputs=True)
        if wait:
            self._queue.wait_all()

    def _done(self, _request: Any, start: float) -> None:
        self._ended.append((start, time.perf_counter()))
