"""An evaluation on the workers of a Ray cluster: the same figures as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from accuquant.cli.main import main
from accuquant.evaluation import EvaluationSettings, evaluate
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster


@pytest.mark.slow
def test_two_workers_give_the_same_figures_bit_for_bit(tiny_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    recipe, out, source = tmp_path / "recipe.safetensors", tmp_path / "out", str(tiny_pipeline)
    few = [
        "--steps",
        "4",
        "--group-size",
        "2",
        "--num-trajectories",
        "4",
        "--batch-size",
        "2",
        "--weight-bits",
        "7",
    ]
    assert main(["calibrate", source, "-o", str(recipe), *few]) == 0
    assert main(["export", source, "--recipe", str(recipe), "-o", str(out), "--target", "cpu"]) == 0
    settings = EvaluationSettings(
        num_images=12, batch_size=2, shard_size=2, metrics=("psnr", "ssim"), resamples=20
    )
    loaded = load_source(source)
    serial = evaluate(out, loaded, settings)
    assert evaluate(out, loaded, settings, cluster=Cluster(workers=2)).to_json() == serial.to_json()
