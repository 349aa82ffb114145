"""Units on processes that Ray starts: lost ones are made up for, others refused, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray_marks import RAY
from torch import Tensor, nn

import accuquant
from accuquant.errors import CalibrationError, ClusterError, UsageError
from accuquant.networks.network import model_hash
from accuquant.units.job import Job
from accuquant.units.units import InMemory

pytestmark = RAY
UNITS = [str(k) for k in range(12)]


@pytest.fixture(scope="module", autouse=True)
def by_value() -> None:
    """Let what is defined here travel as it is: workers cannot import this module."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def job_of(network: nn.Module, **changes: Any) -> Job:
    return Job(lambda _device: {"network": network}, {"network": model_hash(network)}, **changes)


# before `engine` is made: a process has one Ray at a time
def test_workers_of_another_release_or_with_other_weights_are_refused_by_name(network: nn.Module) -> None:
    from accuquant.units.ray_cluster import RayCluster

    facts = {"accuquant": "9.9", "torch": torch.__version__}
    for job, reason in (
        (job_of(network, facts=facts), rf"accuquant {accuquant.__version__} instead of 9\.9"),
        (
            Job(lambda _device: {"network": nn.Linear(2, 2)}, {"network": "0" * 64}),
            "other files of the model",
        ),
    ):
        said: list[str] = []
        with (
            RayCluster(job, {"network": network}, workers=1, say=said.append) as engine,
            pytest.raises(ClusterError, match=rf"worker on node .*: got {reason}"),
        ):
            InMemory(engine).map("s", UNITS, int, lambda: None)
        assert len(said) == 1


def test_a_cluster_that_is_not_there_is_an_error() -> None:
    from accuquant.units.ray_cluster import RayCluster

    with pytest.raises(UsageError, match=r"--ray-address: got 'ray://x:1', Ray's client protocol"):
        RayCluster(job_of(nn.Linear(1, 1)), {}, address="ray://x:1").__enter__()


@pytest.fixture(scope="module")
def engine(network: nn.Module) -> Iterator[Any]:
    from accuquant.units.ray_cluster import RayCluster

    with RayCluster(job_of(network), {"network": network}, workers=2) as engine:
        yield engine


def test_a_worker_that_is_killed_costs_its_unit_alone(
    engine: Any, network: nn.Module, tmp_path: Path
) -> None:
    last = network[2]  # type: ignore[index]

    def compute(unit: str) -> tuple[Tensor, int]:
        if unit in ("3", "4", "9") and not (tmp_path / unit).exists():
            (tmp_path / unit).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / "log").open("a").write(f"{unit}\n")
        return last(torch.full((1, 4), float(unit))), torch.get_num_threads()

    found = InMemory(engine).map("s", UNITS, compute, lambda: None)
    for unit, (result, threads) in zip(UNITS, found, strict=True):
        assert torch.equal(result, last(torch.full((1, 4), float(unit))))
        assert threads == torch.get_num_threads()
    assert sorted((tmp_path / "log").read_text().split(), key=int) == UNITS


def test_what_is_per_worker_is_made_once_in_each_of_them(engine: Any, tmp_path: Path) -> None:
    from accuquant.units.per_worker import PerWorker

    def make() -> int:
        (tmp_path / str(os.getpid())).open("a").write("made ")
        return os.getpid()

    shared = PerWorker(make)

    def compute(_unit: str) -> int:
        time.sleep(0.02)
        return shared.get()

    for _ in range(3):
        pids = InMemory(engine).map("s", UNITS, compute, lambda: None)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    assert all(path.read_text() == "made " for path in tmp_path.iterdir())
    assert {str(pid) for pid in pids} <= {path.name for path in tmp_path.iterdir()}


def test_errors_of_units_come_back_as_what_they_are(engine: Any) -> None:
    def refuse(_unit: str) -> None:
        raise CalibrationError("layer 'x'", got="NaN", expected="finite values", remedy="Repair it")

    def fill(_unit: str) -> None:
        raise OSError(28, "No space left on device", "/scratch/rows")

    with pytest.raises(CalibrationError, match="layer 'x': got NaN"):
        InMemory(engine).map("s", UNITS, refuse, lambda: None)
    with pytest.raises(
        ClusterError,
        match=r"unit '\d+' of the stage 'disk': got 3 failures: on node .* \(\w{8}\): \[Errno 28\] No space "
        r"left on device: '/scratch/rows'",
    ):
        InMemory(engine).map("disk", UNITS, fill, lambda: None)
    assert InMemory(engine).map("s", UNITS, int, lambda: None) == list(range(12))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process_behind(number: signal.Signals, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import pathlib, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        from torch import nn
        from accuquant.cli._signals import terminable
        from accuquant.networks.network import model_hash
        from accuquant.units.job import Job
        from accuquant.units.ray_cluster import RayCluster
        from accuquant.units.units import InMemory
        network = nn.Linear(2, 2)
        job = Job(lambda _device: {{"network": network}}, {{"network": model_hash(network)}})
        def compute(unit):
            pathlib.Path({str(tmp_path)!r}, "begun").touch()
            time.sleep(600)
        with terminable(), RayCluster(job, {{"network": network}}, workers=2) as engine:
            InMemory(engine).map("s", ["a", "b", "c"], compute, lambda: None)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ.copy())
    started: list[psutil.Process] = []
    try:
        _wait(lambda: (tmp_path / "begun").exists())
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 3
        process.send_signal(number)
        process.wait(120)
        _wait(lambda: not _alive(started))
    finally:
        for left in [process, *_alive(started)]:
            left.kill()


def _alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _wait(condition: Any, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
