"""Evaluations and verifications of which a worker or a node is killed: the same figures to the last digit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_marks import RAY

from accuquant._util.progress import Silent
from accuquant.cli.main import main
from accuquant.evaluation.evaluate import evaluate
from accuquant.evaluation.evaluation_settings import EvaluationSettings
from accuquant.networks.memory import StageWatch
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster

pytestmark = RAY
SETTINGS = EvaluationSettings(
    metrics=("psnr",), num_images=12, batch_size=2, shard_size=2, seed=3, resamples=20, engine="onnxruntime"
)


class KillOne(Silent):
    """Kills a worker of this process when the first shard is done."""

    killed = 0

    def advance(self, units: int = 1) -> None:
        for process in psutil.Process().children(recursive=True):
            if not self.killed and "_Served" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                self.killed += 1


class KillNode(Silent):
    """Takes a node away when the third shard is done."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill, self.stages, self.done = kill, "", 0

    def stage(self, name: str, total: int) -> None:
        self.stages, self.done = name, 0

    def advance(self, units: int = 1) -> None:
        self.done += units
        if self.done == 6 and self.stages.startswith("images"):
            self._kill()


@pytest.fixture(scope="module")
def out(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of the tiny pipeline; nobody writes into it."""
    folder = tmp_path_factory.mktemp("ray")
    recipe, out = folder / "r.safetensors", folder / "out"
    quick = ["--steps", "4", "--num-trajectories", "2", "--no-refine", "--observer", "minmax", "--quiet"]
    assert main(["calibrate", str(tiny_pipeline), "-o", str(recipe), *quick]) == 0
    assert main(["export", str(tiny_pipeline), "--recipe", str(recipe), "-o", str(out), "--quiet"]) == 0
    return out


def test_a_worker_that_is_killed_while_evaluating_changes_no_figure(tiny_pipeline: Path, out: Path) -> None:
    source = load_source(tiny_pipeline)
    expected = evaluate(out, source, SETTINGS).to_json()
    kill = KillOne()
    found = evaluate(out, source, SETTINGS, cluster=Cluster(2), progress=kill).to_json()
    assert kill.killed == 1
    assert found == expected


def test_a_node_that_is_killed_while_evaluating_changes_no_figure(tiny_pipeline: Path, out: Path) -> None:
    """Of three nodes; the shards that it was computing go to the others."""
    from ray.cluster_utils import Cluster as Nodes

    source, killed = load_source(tiny_pipeline), []
    settings = replace(SETTINGS, num_images=24)
    expected = evaluate(out, source, settings).to_json()
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        others = [nodes.add_node(num_cpus=1) for _ in range(2)]

        def kill() -> None:
            nodes.remove_node(others[0], allow_graceful=False)
            killed.append(others[0])

        progress = KillNode(kill)
        found = evaluate(
            out, source, settings, cluster=Cluster(address=nodes.address), progress=progress
        ).to_json()
    finally:
        nodes.shutdown()
    assert len(killed) == 1
    assert found == expected


def test_a_verification_by_the_command_with_two_workers_of_which_one_is_killed_is_the_same(
    tiny_pipeline: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["verify", str(out), "--reference", str(tiny_pipeline), "--num-images", "7", "--batch-size", "2"]
    words += ["--engine", "onnxruntime", "--features", "none", "--quiet"]
    words += ["--min-psnr", "none", "--min-lowering-psnr", "none"]

    def report(name: str, *more: str) -> dict[str, Any]:
        assert main([*words, "--json", str(tmp_path / name), *more]) == 0
        found: dict[str, Any] = json.loads((tmp_path / name).read_text())
        return {key: value for key, value in found.items() if key != "latencies"}

    serial = report("serial.json")
    kill = KillOne()
    monkeypatch.setattr(StageWatch, "advance", kill.advance)
    assert report("workers.json", "--workers", "2") == serial
    assert kill.killed == 1
