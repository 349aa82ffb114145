"""Calibrations on workers, and on nodes of which one is killed: the bytes of the recipe are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_marks import RAY

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster

pytestmark = RAY
SETTINGS = CalibrationSettings(
    probe=False, steps=4, group_size=2, num_trajectories=8, batch_size=2, iterations=2, shared_iterations=2,
    sensitivity=True, observer="minmax", activation_bits=4, weight_bits=4, learning_rate=0.02,
)  # fmt: skip


class Once(Silent):
    """Does something once, when a stage has come so far."""

    def __init__(self, stage: str, units: int, action: Callable[[], None]) -> None:
        self.at, self.action = (stage, units), action
        self.done = False
        self._now: list[Any] = ["", 0]

    def stage(self, name: str, total: int) -> None:
        self._now = [name, 0]

    def advance(self, units: int = 1) -> None:
        self._now[1] += units
        if not self.done and self._now[0] == self.at[0] and self._now[1] >= self.at[1]:
            self.done = True
            self.action()


@pytest.fixture(scope="module")
def serial(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("serial") / "r.safetensors"
    calibrate(load_source(tiny_pipeline), SETTINGS, output=output)
    return output.read_bytes()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_writes_the_bytes_that_one_process_writes(
    tiny_pipeline: Path, tmp_path: Path, serial: bytes, workers: int
) -> None:
    output = tmp_path / "r.safetensors"
    calibrate(load_source(tiny_pipeline), SETTINGS, output=output, cluster=Cluster(workers))
    assert output.read_bytes() == serial
    assert not output.with_name("r.safetensors.partial").exists()


@pytest.fixture
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster as Nodes

    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize(("stage", "units"), [("full-precision trajectories", 4), ("layer sensitivity", 5)])
def test_a_node_that_is_killed_while_calibrating_changes_no_byte(
    tiny_pipeline: Path, tmp_path: Path, serial: bytes, nodes: Any, stage: str, units: int
) -> None:
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    kill = Once(stage, units, lambda: nodes.remove_node(others[0], allow_graceful=False))
    output = tmp_path / "r.safetensors"
    calibrate(
        load_source(tiny_pipeline), SETTINGS,
        output=output, progress=kill, cluster=Cluster(address=nodes.address),
    )  # fmt: skip
    assert kill.done
    assert output.read_bytes() == serial


class LostError(Exception):
    """What ends the head in a test."""


def test_a_head_that_is_lost_goes_on_from_the_work_folder_with_another_number_of_workers(
    tiny_pipeline: Path, tmp_path: Path, serial: bytes
) -> None:
    def lose() -> None:
        raise LostError

    output = tmp_path / "r.safetensors"
    with pytest.raises(LostError):
        calibrate(
            load_source(tiny_pipeline), SETTINGS,
            output=output, progress=Once("weight rounding", 3, lose), cluster=Cluster(2),
        )  # fmt: skip
    assert list(output.with_name("r.safetensors.partial").glob("trajectories/*.safetensors"))
    calibrate(load_source(tiny_pipeline), SETTINGS, output=output)
    assert output.read_bytes() == serial
