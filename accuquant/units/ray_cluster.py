"""Units on the workers of a Ray cluster, on this machine or on many: the only module that imports ray."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from accuquant._util.system_errors import os_error_number
from accuquant.errors import ClusterError, UsageError

from .agreement import processor_here
from .job import Job, check_facts, opened
from .node_times import Spent, slow_nodes
from .schedule import ATTEMPTS, Done, Failed, Worker, run
from .tensor_tree import Tree, at_home
from .travelling import Parcel, Roots, Unpacker, pack
from .units import Compute

#: Seconds without a worker after which it is said that one is waited for.
_PATIENCE = 60.0
#: Bytes of results and of what units travel with, on one machine; what does not fit goes to disk.
_STORE = 512 << 20


class RayCluster:
    """An engine whose units run in worker processes: a context, which ends them all.

    Without an `address` Ray starts on this machine with so many `workers`; with one, workers start in a
    cluster that somebody else keeps: by default one for each GPU where the job needs one, or else for each
    processor core. `roots` are this process's own networks, as `job` opens them elsewhere. `say` is told
    what the user should know: a node that is refused, or slow.
    """

    away = True

    def __init__(
        self,
        job: Job,
        roots: Roots,
        *,
        workers: int | None = None,
        address: str | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._job, self._roots, self._say = job, roots, say
        self._workers, self._address = workers, address
        self._pools: dict[str, _Pool] = {}
        self._open = ExitStack()

    def __enter__(self) -> RayCluster:
        """Start Ray, or join it. Raises ClusterError where that fails."""
        with ExitStack() as stack:
            stack.enter_context(_connected(self._address, self._workers))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every worker, and what was started."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._open.close()

    def results(
        self, stage: str, units: Sequence[str], compute: Compute, *, anywhere: bool = False
    ) -> Generator[tuple[str, Tree], None, None]:
        """Yield each of `units` with its result, as soon as it is known."""
        if not units:
            return
        pool = self._pool("cpu" if anywhere else self._job.device)
        pool.begin(pack(compute, self._roots))
        yield from run(pool, stage, units)
        for line in slow_nodes(pool.spent):
            self._say(f"{stage}: {line}")

    def _pool(self, device: str) -> _Pool:
        if device not in self._pools:
            self._pools[device] = _Pool(self._job, device, self._count(device), self._say)
        return self._pools[device]

    def _count(self, device: str) -> int:
        resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
        there = int(resources.get("GPU" if device.startswith("cuda") else "CPU", 0))
        if device.startswith("cuda") and not there:
            raise ClusterError(
                "cluster", got="no GPU on any node", expected="a GPU, as --device asks for",
                remedy="Give --device cpu, or add a node with a GPU",
            )  # fmt: skip
        return min(self._workers or there, there) if device.startswith("cuda") else self._workers or there


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[None]:
    """Run with Ray: one that is started here and ended again, or the user's."""
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            "--ray-address", got=f"'{address}', Ray's client protocol", expected="HOST:6379, or auto",
            remedy="Run the command on a node of the cluster, where auto finds it",
        )  # fmt: skip
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # what ray prints of lost workers goes to stdout, where --json may be; it is told in our own words
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *_args, **_options: None
    handler, folder = signal.getsignal(signal.SIGTERM), None
    options: dict[str, Any] = {"address": address}
    if address is None:
        # ray's 15 by default: the work that the user waits for would come after all else on the machine
        os.environ.setdefault("RAY_worker_niceness", "0")
        # short: the paths of sockets in it have to stay below 108 bytes
        folder = tempfile.mkdtemp(prefix="aq-")
        options = {
            "address": "local", "num_cpus": workers, "include_dashboard": False, "_temp_dir": folder,
            "object_store_memory": _STORE,
        }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        with suppress(ValueError):  # not the main thread: ray has left it alone as well
            signal.signal(signal.SIGTERM, handler)
        yield
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as fault:
        if ray.is_initialized():
            raise
        raise ClusterError(
            f"Ray at '{address}'" if address else "Ray on this machine",
            got=" ".join(str(fault).split())[:300], expected="a cluster that answers",
            remedy="Check `ray status` on a node of the cluster, and that all nodes have the same ray",
        ) from fault  # fmt: skip
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


class _Served:
    """What runs in a worker's process."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._fresh: tuple[bytes, Mapping[str, Any]] | None = None

    def node(self) -> str:
        """Return how people are told where this is."""
        return f"node {socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]})"

    def open(self, facts: Mapping[str, str], job: bytes, device: str) -> bytes:
        """Open the job's networks -> node and processor, or why not. `facts` come first: they are plain."""

        def answer() -> tuple[str, str]:
            check_facts(facts, self.node())
            opened_job: Job = pickle.loads(job)
            self._unpacker = Unpacker(self._stack.enter_context(opened(opened_job, self.node(), device)))
            return self.node(), processor_here()

        return _answered(answer)

    def begin(self, data: bytes, parts: Mapping[str, Any]) -> None:
        """Take what the units of the next stage are computed with: once, not with each of them."""
        self._fresh = data, parts

    def compute(self, unit: str) -> bytes:
        """Compute a unit -> its result and what it took, or its error."""

        def answer() -> tuple[Tree, Spent]:
            seconds, computing = time.perf_counter(), time.process_time()
            try:
                if self._fresh is not None:
                    data, parts = self._fresh
                    self._compute = self._unpacker.unpack(data, lambda token: ray.get(parts[token]))
                    self._fresh = None
                result = at_home(self._compute(unit))
            except BaseException:
                self._unpacker.forget()
                raise
            return result, Spent(time.perf_counter() - seconds, time.process_time() - computing)

        return _answered(answer)


def _answered(answer: Callable[[], object]) -> bytes:
    """Return what `answer` returns, or the error that it raises, as bytes: Ray would wrap errors."""
    try:
        return pickle.dumps((answer(), None))
    except Exception as fault:
        return pickle.dumps((None, _portable(fault)))


def _portable(fault: Exception) -> Exception:
    """Return `fault` in a form that can be pickled and read by others, a system's error with its number."""
    number = os_error_number(fault)
    if not isinstance(fault, OSError) and number is not None:
        return OSError(number, " ".join(str(fault).split()))
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(fault))
        if type(copy) is type(fault) and str(copy) == str(fault):
            return fault
    return RuntimeError(f"{type(fault).__name__}: {fault}")


@dataclass
class _Actor:
    """A worker's process: opening while it has no `worker`, idle without a `unit`; told of stage `number`."""

    handle: Any
    ref: Any
    worker: Worker | None = None
    unit: str | None = None
    number: int = 0


class _Pool:
    """The workers for one kind of units."""

    def __init__(self, job: Job, device: str, count: int, say: Callable[[str], None]) -> None:
        import cloudpickle

        self._facts, self._device, self._count, self._say = dict(job.facts), device, count, say
        self._job = ray.put(cloudpickle.dumps(job))
        self._actors: dict[str, _Actor] = {}
        self._started = self._number = self._lost_opening = 0
        self._refused: list[ClusterError] = []
        self._processors: set[str] = {processor_here()}
        self._data: Any = None
        self._parts: dict[str, Any] = {}
        self.spent: dict[str, list[Spent]] = {}
        for _ in range(count):
            self._start()

    def begin(self, parcel: Parcel) -> None:
        """Prepare for units of another stage; what workers have of the one before stays theirs."""
        self._number += 1
        self._data = ray.put(parcel.data)
        self._parts = {t: self._parts.get(t) or ray.put(made) for t, made in parcel.parts.items()}
        self.spent = {}
        for _ in range(self._count - len(self._actors) - len(self._refused)):
            self._start()

    def idle(self) -> list[Worker]:
        """Return the workers that may take a unit now."""
        return [a.worker for a in self._actors.values() if a.worker is not None and a.unit is None]

    def nodes(self) -> set[str]:
        """Return the nodes that workers are on now."""
        return {actor.worker.node for actor in self._actors.values() if actor.worker is not None}

    def submit(self, worker: Worker, unit: str) -> None:
        """Let a worker compute a unit."""
        actor = self._actors[worker.name]
        if actor.number != self._number:
            # calls of an actor are served in their order
            actor.handle.begin.remote(self._data, self._parts)
            actor.number = self._number
        actor.unit = unit
        actor.ref = actor.handle.compute.remote(unit)

    def wait(self) -> list[Done | Failed]:
        """Wait until units end, or a worker comes."""
        waited = {a.ref: name for name, a in self._actors.items() if a.worker is None or a.unit is not None}
        if not waited:
            raise self._refused[-1] if self._refused else self._no_worker("none was started")
        ready, _ = ray.wait(list(waited), timeout=_PATIENCE)
        if not ready and not any(actor.worker for actor in self._actors.values()):
            kind = "GPU" if self._device.startswith("cuda") else "processor core"
            self._say(f"waiting for a node with a free {kind}")
        ready, _ = ray.wait(list(waited), num_returns=len(waited), timeout=0)
        return [event for ref in ready if (event := self._happened(waited[ref])) is not None]

    def abandon(self) -> None:
        """End the workers that are busy: what they compute is not wanted any more."""
        for name in [name for name, actor in self._actors.items() if actor.unit is not None]:
            self._kill(name)

    def close(self) -> None:
        """End all workers."""
        for name in list(self._actors):
            self._kill(name)

    def _start(self) -> None:
        self._started += 1
        gpus = 1 if self._device.startswith("cuda") else 0
        served: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")(
            _Served
        )
        handle = served.remote()
        ref = handle.open.remote(self._facts, self._job, "cuda" if gpus else self._device)
        self._actors[f"worker {self._started}"] = _Actor(handle, ref)

    def _happened(self, name: str) -> Done | Failed | None:
        actor = self._actors[name]
        try:
            value, fault = pickle.loads(ray.get(actor.ref))
        except RayError as lost:
            return self._lost(name, actor, lost)
        if actor.worker is None:
            self._came(name, actor, value, fault)
            return None
        unit, actor.unit = actor.unit, None
        assert unit is not None
        if fault is not None:
            return Failed(actor.worker, unit, fault)
        result, spent = value
        self.spent.setdefault(actor.worker.node, []).append(spent)
        return Done(actor.worker, unit, result)

    def _came(self, name: str, actor: _Actor, value: Any, fault: Exception | None) -> None:
        if fault is None:
            node, processor = value
            actor.worker, self._lost_opening = Worker(name, node), 0
            if processor not in self._processors:
                self._processors.add(processor)
                self._say(
                    f"{node} computes with {processor}, this process with {processor_here()}: last digits of "
                    "the result depend on which of them a unit meets"
                )
            return
        self._kill(name)
        if not isinstance(fault, ClusterError):
            raise fault
        self._refused.append(fault)
        self._say(str(fault))

    def _lost(self, name: str, actor: _Actor, lost: RayError) -> Failed | None:
        self._kill(name)
        reason = " ".join(str(lost).split()).split(" class_name:")[0][:200]  # ids of no use follow
        if actor.worker is None:
            self._lost_opening += 1
            if self._lost_opening >= ATTEMPTS * self._count:
                raise self._no_worker(reason)
        self._start()
        if actor.worker is None or actor.unit is None:
            return None
        fault = ClusterError(
            actor.worker.name, got=f"its process ended ({reason})", expected="a result",
            remedy="Look at that node's memory and its logs",
        )  # fmt: skip
        return Failed(actor.worker, actor.unit, fault)

    def _kill(self, name: str) -> None:
        with suppress(RayError):
            ray.kill(self._actors.pop(name).handle)

    def _no_worker(self, reason: str) -> ClusterError:
        return ClusterError(
            f"workers for device '{self._device}'", got=reason, expected="one that opens the network",
            remedy="Check that every node has accuquant[calibrate,cluster], and memory for the network",
        )  # fmt: skip
