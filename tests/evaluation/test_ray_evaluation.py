"""Evaluations on workers, of which one is killed: the same figures to the last digit."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from accuquant._util.progress import Silent
from accuquant.cli.main import main
from accuquant.evaluation.evaluate import evaluate
from accuquant.evaluation.evaluation_settings import EvaluationSettings
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    # of sockets and files that ray itself leaves to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
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


def test_a_worker_that_is_killed_while_evaluating_changes_no_figure(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "r.safetensors", tmp_path / "out"
    quick = ["--steps", "4", "--num-trajectories", "2", "--no-refine", "--observer", "minmax", "--quiet"]
    assert main(["calibrate", str(tiny_pipeline), "-o", str(recipe), *quick]) == 0
    assert main(["export", str(tiny_pipeline), "--recipe", str(recipe), "-o", str(out), "--quiet"]) == 0
    source = load_source(tiny_pipeline)
    expected = evaluate(out, source, SETTINGS).to_json()
    kill = KillOne()
    found = evaluate(out, source, SETTINGS, cluster=Cluster(2), progress=kill).to_json()
    assert kill.killed == 1
    assert found == expected
