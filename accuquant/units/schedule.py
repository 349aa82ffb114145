"""Who computes which unit next, and what becomes of a unit whose worker is lost: without any of Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from accuquant._util.system_errors import is_out_of_memory
from accuquant.errors import AccuQuantError, ClusterError

from .tensor_tree import Tree

#: How often a unit may fail until the run ends with its error.
ATTEMPTS = 3


@dataclass(frozen=True)
class Worker:
    """A process that computes one unit at a time; `node` says for people where."""

    name: str
    node: str


@dataclass(frozen=True)
class Done:
    """A unit's result."""

    worker: Worker
    unit: str
    result: Tree


@dataclass(frozen=True)
class Failed:
    """A unit that raised `fault`, or whose worker was lost: then the fault says how."""

    worker: Worker
    unit: str
    fault: BaseException


class Pool(Protocol):
    """Workers that come and go."""

    def idle(self) -> Sequence[Worker]:
        """Return the workers that may take a unit now."""

    def nodes(self) -> set[str]:
        """Return the nodes that workers are on now, busy ones too."""

    def submit(self, worker: Worker, unit: str) -> None:
        """Let a worker compute a unit."""

    def wait(self) -> Sequence[Done | Failed]:
        """Wait until something happens, which may be that a worker came. Raises ClusterError without any."""

    def abandon(self) -> None:
        """Give up what is being computed."""


def run(pool: Pool, stage: str, units: Sequence[str]) -> Generator[tuple[str, Tree], None, None]:
    """Yield each of `units` with its result, in the order in which they are done.

    A unit that failed is tried again, on another node where there is one: a full disk stays full. An error
    that AccuQuant raises on purpose would come again, and ends the run at once, as it does where one process
    computes. Any other does so after ATTEMPTS failures of one unit: ClusterError names the nodes and what
    happened on them.
    """
    waiting, computing = deque(units), 0
    failures: dict[str, list[Failed]] = {}
    try:
        while waiting or computing:
            for worker in pool.idle():
                unit = _next(waiting, failures, worker, pool.nodes())
                if unit is not None:
                    pool.submit(worker, unit)
                    computing += 1
            for event in pool.wait():
                computing -= 1
                if isinstance(event, Done):
                    yield event.unit, event.result
                    continue
                so_far = failures.setdefault(event.unit, [])
                so_far.append(event)
                _give_up(stage, so_far)
                waiting.appendleft(event.unit)
    finally:
        if computing:
            pool.abandon()


def _next(
    waiting: deque[str], failures: dict[str, list[Failed]], worker: Worker, nodes: set[str]
) -> str | None:
    """Take the first unit for a worker: not one that failed last on its node, where there are others."""
    for unit in waiting:
        elsewhere = unit not in failures or failures[unit][-1].worker.node != worker.node
        if elsewhere or nodes == {worker.node}:
            waiting.remove(unit)
            return unit
    return None


def _give_up(stage: str, failures: Sequence[Failed]) -> None:
    fault, unit = failures[-1].fault, failures[-1].unit
    if isinstance(fault, AccuQuantError) and not isinstance(fault, ClusterError):
        raise fault
    if len(failures) < ATTEMPTS:
        return
    if is_out_of_memory(fault):
        raise fault  # who called knows what to change
    told = [f"on {failure.worker.node}: {_told(failure.fault)}" for failure in failures]
    raise ClusterError(
        f"unit '{unit}' of the stage '{stage}'",
        got=f"{len(failures)} failures: {'; '.join(dict.fromkeys(told))}",
        expected="a result from one of them",
        remedy="What is finished is kept: repair that, and run the same command again",
    ) from fault


def _told(fault: BaseException) -> str:
    if isinstance(fault, ClusterError):
        return f"{fault.subject}, {fault.got}"
    text = " ".join(str(fault).split())
    return text if isinstance(fault, OSError) and text else f"{type(fault).__name__}: {text}"
