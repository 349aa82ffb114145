"""An evaluation on the workers of a Ray cluster, and after a kill: the same figures as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accuquant.evaluation import EvaluationSettings, evaluate
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_workers_give_the_same_figures_bit_for_bit(real_export: Path, tiny_pipeline: Path) -> None:
    pytest.importorskip("ray")
    settings = EvaluationSettings(
        num_images=12, batch_size=2, shard_size=2, metrics=("psnr", "ssim"), resamples=20
    )
    source = load_source(tiny_pipeline)
    serial = evaluate(real_export, source, settings)
    assert evaluate(real_export, source, settings, cluster=Cluster(workers=2)).to_json() == serial.to_json()


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_file(
    real_export: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """SIGKILL, as soon as some shards lie in the work folder."""

    def command(name: str) -> list[str]:
        few = {"num-images": 600, "metrics": "psnr,ssim", "batch-size": 4, "shard-size": 4, "resamples": 20}
        options = [word for option, value in few.items() for word in (f"--{option}", str(value))]
        files = ["--work-dir", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]
        words = ["evaluate", str(real_export), "--reference", str(tiny_pipeline), *options, *files]
        return [sys.executable, "-m", "accuquant", *words]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command("killed"), env=environment)
    while killed.poll() is None and not list((tmp_path / "killed").rglob("units/*/*.safetensors")):
        time.sleep(0.02)
    assert killed.poll() is None, "it ended before it was killed"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed.json").exists()
    for name in ("killed", "whole"):
        subprocess.run(command(name), env=environment, check=True)
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
