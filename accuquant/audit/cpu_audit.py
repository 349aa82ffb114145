"""Audit what OpenVINO or ONNX Runtime runs of a model on the processor of this machine."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accuquant._util.processor import describe_processor
from accuquant._util.progress import Progress, Silent
from accuquant._util.scratch import scratch_folder
from accuquant.audit.audit_model import AuditReport, find_graph, name_of, shapes_of, write_float_twin
from accuquant.audit.engine_audit import EngineAudit, compare
from accuquant.audit.engine_layers import EngineDescription
from accuquant.audit.onnxruntime_layers import ProfiledSession
from accuquant.audit.openvino_layers import read_openvino_layers, times_of_calls
from accuquant.errors import EngineError
from accuquant.export.read.as_written import read_as_written
from accuquant.graph.calibrated import find_followers
from accuquant.graph.roles import check_roles
from accuquant.graph.skeleton import read_skeleton
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.runner import Array

CpuEngine = Literal["openvino", "onnxruntime"]
#: --against: the same network without QDQ pairs, in float32 where it is not in half precision.
FLOAT = "float"
Shapes = Mapping[str, tuple[int, ...]]


def audit_on_cpu(
    source: Path,
    engine: CpuEngine = "openvino",
    *,
    against: str | None = FLOAT,
    batch_size: int | None = None,
    shapes: Shapes | None = None,
    num_threads: int | None = None,
    rounds: int = 10,
    progress: Progress | None = None,
) -> AuditReport:
    """Compile `source` for this machine's processor as the runner does, run it, and say what ran.

    `source`, `against` and the shapes are those of `audit_model`, but that FLOAT stands for the network
    without pairs. The two networks take turns for `rounds` calls; times are medians of each
    kernel. Raises SourceError where there is no such model, EngineError where it cannot be run.
    """
    shown = progress or Silent()
    model, count = find_graph(source)
    other = None if against in (None, FLOAT) else find_graph(Path(str(against)))
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder("audit"))
        sides = [_Side(model, name_of(source), count)]
        if other is not None:
            sides.append(_Side(other[0], name_of(Path(str(against))), other[1]))
        elif against == FLOAT:
            twin = write_float_twin(model, scratch, half=False)
            sides.append(_Side(twin, f"{name_of(source)} without QDQ", 1))
        for side in sides:
            shown.stage(f"compiling {side.name} with {engine}", 0)
            side.open(engine, shapes_of(side.path, batch_size, shapes or {}), num_threads, scratch)
            stack.callback(side.close)
        shown.stage("running", rounds)
        for _ in range(rounds):
            for side in sides:
                side.run()
            shown.advance()
        audits = [side.audit(engine, num_threads) for side in sides]
    return AuditReport(audits[0], audits[1] if len(audits) > 1 else None)


class _Side:
    """One of the networks that are compared, loaded into the engine."""

    def __init__(self, path: Path, name: str, num_engines: int) -> None:
        self.path = path
        self.name = name
        self.num_engines = num_engines
        self._calls: list[float] = []
        self._means: list[Mapping[str, float]] = []

    def open(self, engine: CpuEngine, shapes: Shapes, num_threads: int | None, scratch: Path) -> None:
        """Compile the network, and run it once: the first call is slower."""
        self._network = read_as_written(self.path)
        check_roles(self._network, self.path)
        began = time.perf_counter()
        self._runner: OpenVinoRunner | ProfiledSession
        if engine == "openvino":
            self._runner = OpenVinoRunner(self.path, num_threads=num_threads, profile=True)
        else:
            self._runner = ProfiledSession(self.path, scratch, num_threads=num_threads)
        self._runner.activate()
        self._feeds = feeds_of(self._runner, shapes)
        self._shapes = {name: array.shape for name, array in self._feeds.items()}
        self._runner.infer(self._feeds)
        self._read_counters()
        self._seconds = time.perf_counter() - began

    def run(self) -> None:
        """Run it once more, and keep the times."""
        began = time.perf_counter()
        self._runner.infer(self._feeds)
        self._calls.append((time.perf_counter() - began) * 1e3)
        self._read_counters()

    def audit(self, engine: CpuEngine, num_threads: int | None) -> EngineAudit:
        """Return what ran."""
        threads = f"{num_threads} thread{'s' * (num_threads != 1)}" if num_threads else "all cores"
        batch = next((shape[0] for shape in self._shapes.values() if len(shape) > 2), 1)
        return compare(
            self._network,
            self._described(),
            self._shapes,
            (),
            name=self.name,
            target=f"{describe_processor()}, {threads}, batch {batch}",
            library=f"{engine} {importlib.metadata.version(engine)}",
            seconds=self._seconds,
            plan_bytes=0,
            num_engines=self.num_engines,
            milliseconds=float(np.median(self._calls)),
        )

    def close(self) -> None:
        """Release the network."""
        self._runner.deactivate()

    def _described(self) -> EngineDescription:
        if not isinstance(self._runner, OpenVinoRunner):
            return self._runner.described(self._network)
        followers = find_followers(read_skeleton(self.path, error=EngineError))
        return read_openvino_layers(self._runner.executed(), times_of_calls(self._means), followers)

    def _read_counters(self) -> None:
        if isinstance(self._runner, OpenVinoRunner):
            self._means.append(self._runner.profiled())


def feeds_of(runner: Any, shapes: Shapes) -> dict[str, Array]:
    """Return one array for each of the runner's inputs: noise where there are axes enough, else 1.

    Whole numbers are 0. `shapes` gives the inputs that have a dynamic extent.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in runner.input_specs:
        shape = shapes.get(spec.name) or tuple(int(extent) for extent in spec.shape)
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iub":
            feeds[spec.name] = np.zeros(shape, dtype)
        elif len(shape) < 2:
            feeds[spec.name] = np.ones(shape, dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
    return feeds
