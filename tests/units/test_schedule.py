"""Units on workers that come, fail, and go: nothing of it can be seen in the results."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from accuquant.errors import CalibrationError, ClusterError
from accuquant.units.schedule import Done, Failed, Worker, run
from accuquant.units.units import Compute, InMemory, KeptUnits

UNITS = [f"unit {k}" for k in range(23)]
#: (node, unit) -> what goes wrong, or None
Fault = Callable[[str, str], BaseException | None]


class FakePool:
    """Workers on nodes that end units in an order drawn by a seed."""

    def __init__(self, nodes: Sequence[str], compute: Compute, fault: Fault, seed: int = 0) -> None:
        self.workers = [Worker(f"worker {k}", node) for k, node in enumerate(nodes)]
        self.log: list[tuple[str, str]] = []
        self.abandoned = False
        self._compute, self._fault = compute, fault
        self._busy: dict[Worker, str] = {}
        self._rng = random.Random(seed)

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker not in self._busy]

    def nodes(self) -> set[str]:
        return {worker.node for worker in self.workers}

    def submit(self, worker: Worker, unit: str) -> None:
        assert worker not in self._busy
        self._busy[worker] = unit
        self.log.append((worker.node, unit))

    def wait(self) -> list[Done | Failed]:
        worker = self._rng.choice(list(self._busy))
        unit = self._busy.pop(worker)
        fault = self._fault(worker.node, unit)
        if fault is not None:
            return [Failed(worker, unit, fault)]
        return [Done(worker, unit, self._compute(unit))]

    def abandon(self) -> None:
        self.abandoned = True


class Elsewhere:
    """An engine over a FakePool."""

    away = True

    def __init__(self, nodes: Sequence[str], fault: Fault = lambda _node, _unit: None, seed: int = 0) -> None:
        self._nodes, self._fault, self._seed = nodes, fault, seed
        self.pool: FakePool

    def results(
        self, stage: str, units: Sequence[str], compute: Compute, *, anywhere: bool = False
    ) -> Generator[tuple[str, Any], None, None]:
        self.pool = FakePool(self._nodes, compute, self._fault, self._seed)
        yield from run(self.pool, stage, units)


def number(unit: str) -> Any:
    """Return a float32 that makes the sum of all depend on their order."""
    return torch.tensor(1 / (3 + UNITS.index(unit)) * (-1) ** UNITS.index(unit))


def total(numbers: Sequence[torch.Tensor]) -> float:
    """Add in float32, one after the other."""
    return float(functools.reduce(operator.add, numbers))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_units_so_that_sums_have_the_same_bits(workers: int) -> None:
    expected = total([number(unit) for unit in UNITS])
    orders, sums = set(), set()
    for seed in range(6):
        done: list[int] = []
        engine = Elsewhere(["a"] * workers, seed=seed)
        found = InMemory(engine).map("s", UNITS, number, functools.partial(done.append, 1))
        assert len(done) == len(UNITS)
        assert total(found) == expected
        pool = FakePool(["a"] * workers, number, lambda _node, _unit: None, seed)
        arrived = [unit for unit, _ in run(pool, "s", UNITS)]
        orders.add(tuple(arrived))
        sums.add(total([number(unit) for unit in arrived]))
    # in the order of arrival it would have been another sum each time
    assert (len(orders), len(sums) > 1) == ((1, False) if workers == 1 else (6, True))


def test_a_lost_worker_costs_its_unit_which_is_computed_again(tmp_path: Path) -> None:
    lost = random.Random(1)
    faults: list[str] = []

    def fault(node: str, unit: str) -> BaseException | None:
        if faults.count(unit) == 2 or lost.random() < 0.5:
            return None
        faults.append(unit)
        return ClusterError("worker", got="its process ended", expected="a result", remedy="Look")

    found = KeptUnits(tmp_path, Elsewhere(["a", "b", "c"], fault)).map("s", UNITS, number, lambda: None)
    assert len(faults) > 10
    assert torch.equal(torch.stack(found), torch.stack([number(unit) for unit in UNITS]))


def test_a_node_whose_disk_is_full_gets_no_unit_twice_where_there_are_others() -> None:
    def fault(node: str, unit: str) -> BaseException | None:
        return OSError(28, "No space left on device", "/scratch/x") if node == "full" else None

    engine = Elsewhere(["full", "full", "good"], fault)
    assert len(InMemory(engine).map("s", UNITS, number, lambda: None)) == len(UNITS)
    there = [unit for node, unit in engine.pool.log if node == "full"]
    assert len(there) == len(set(there)) > 5


def test_a_unit_that_fails_three_times_ends_the_run_names_the_nodes_and_leaves_what_is_done(
    tmp_path: Path,
) -> None:
    def fault(node: str, unit: str) -> BaseException | None:
        return OSError(28, "No space left on device", "/scratch/x") if unit == "unit 9" else None

    engine = Elsewhere(["a", "b"], fault)
    with pytest.raises(
        ClusterError,
        match=r"^unit 'unit 9' of the stage 's': got 3 failures: on [ab]: \[Errno 28\] No space left on dev"
        r"ice: '/scratch/x'; on [ab]: .*, expected a result .* What is finished is kept",
    ) as raised:
        KeptUnits(tmp_path, engine).map("s", UNITS, number, lambda: None)
    assert "on a: " in str(raised.value)
    assert "on b: " in str(raised.value)
    assert engine.pool.log.count(("a", "unit 9")) + engine.pool.log.count(("b", "unit 9")) == 3
    computed: list[str] = []
    KeptUnits(tmp_path).map("s", UNITS, lambda unit: computed.append(unit), lambda: None)
    assert "unit 9" in computed
    assert 9 - 2 <= len(UNITS) - len(computed) < len(UNITS) - 1


def test_an_error_that_would_come_again_ends_the_run_at_once() -> None:
    broken = CalibrationError("layer 'x'", got="NaN", expected="finite values", remedy="Repair it")
    pool = FakePool(["a"], number, lambda _node, unit: broken if unit == "unit 2" else None)
    with pytest.raises(CalibrationError, match="layer 'x': got NaN"):
        list(run(pool, "s", UNITS))
    assert pool.log == [("a", unit) for unit in UNITS[:3]]


def test_memory_that_is_short_three_times_is_told_as_where_one_process_computes() -> None:
    pool = FakePool(["a"], number, lambda _node, _unit: MemoryError())
    with pytest.raises(MemoryError):
        list(run(pool, "s", UNITS))
    assert len(pool.log) == 3


def test_who_stops_listening_ends_what_is_being_computed() -> None:
    pool = FakePool(["a", "b"], number, lambda _node, _unit: None)
    with closing(run(pool, "s", UNITS)) as results:
        next(results)
    assert pool.abandoned
    pool = FakePool(["a", "b"], number, lambda _node, _unit: None)
    list(run(pool, "s", UNITS))
    assert not pool.abandoned
