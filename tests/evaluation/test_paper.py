"""The papers' benchmarks: files that the commands understand, and a run to the end on a bundled model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from accuquant.evaluation.metrics import METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "paper").glob("*.toml"))
FACTS = {"method", "bits", "source"}


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_there_is_a_file_for_each_benchmark_of_the_papers() -> None:
    assert [path.stem for path in FILES] == ["cifar10", "imagenet", "lsun", "sd14"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["calibrate", "export", "evaluate"])
def test_commands_take_the_options_of_a_file(path: Path, stage: str) -> None:
    command = importlib.import_module(f"accuquant.cli.{stage}").command
    options = {name: param for param in command.params for name in param.opts}
    for name, value in read(path)[stage].items():
        param = options[f"--{name}"]
        text = ",".join(value) if isinstance(value, list) else str(value)
        assert param.type.convert(text, param, click.Context(command)) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_rows_name_their_source_and_known_metrics(path: Path) -> None:
    data = read(path)
    assert set(data["evaluate"]["metrics"]) <= set(METRICS)
    for row in data.get("published", []):
        assert row.keys() >= FACTS
        assert row.keys() - FACTS <= set(METRICS)
        assert row.keys() > FACTS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "sd14"])
def test_a_benchmark_runs_to_the_end_on_a_bundled_model(name: str, tmp_path: Path) -> None:
    model = {"cifar10": "fashion-ddpm", "sd14": "fashion-text"}[name]
    fewer = ["num-trajectories=2", "batch-size=2", "iterations=0", "shared-iterations=0", "group-size=2"]
    command = [
        sys.executable, str(ROOT / "benchmarks" / "paper.py"), name, "--model", model, "--steps", "4",
        "--num-images", "6", "--metrics", "fid2fp32,psnr,ssim", "--work-dir", str(tmp_path / "work"),
        "--set", "evaluate.batch-size=3", "--json", str(tmp_path / "row.json"),
        *(word for option in fewer for word in ("--set", f"calibrate.{option}")),
        "--set", "evaluate.features=" + ("auto" if name == "cifar10" else "tiny_features:quarters"),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "this run" in done.stdout
    assert "Q-Diffusion" in done.stdout
    assert f"this run is of {model}, the published rows are not" in done.stdout
    record = json.loads((tmp_path / "row.json").read_text())
    ours = {figure["metric"]: figure for figure in record["ours"] if figure["branch"] == "int8"}
    assert ours["psnr"]["value"] > 10
    assert ours["fid2fp32"]["low"] <= ours["fid2fp32"]["value"] <= ours["fid2fp32"]["high"]
    assert (tmp_path / "work" / "report.html").stat().st_size > 10_000
