"""The papers' benchmarks: files that the commands understand, and a run to the end on a bundled model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from hub_server import serve

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


#: What makes a benchmark small.
FEW = {
    "calibrate": (
        "num-trajectories=2",
        "batch-size=2",
        "iterations=0",
        "shared-iterations=0",
        "group-size=2",
    ),
    "evaluate": ("batch-size=3",),
}
BUNDLED = {"cifar10": "fashion-ddpm", "lsun": "fashion-ddpm", "imagenet": "emoji-dit", "sd14": "fashion-text"}


def run_benchmark(
    name: str, work: Path, *words: str, environment: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Run a benchmark small -> what it prints, and its record."""
    changes = [
        word
        for stage, options in FEW.items()
        for option in options
        for word in ("--set", f"{stage}.{option}")
    ]
    command = [
        sys.executable, str(ROOT / "benchmarks" / "paper.py"), name, "--steps", "4", "--num-images", "6",
        "--metrics", "fid2fp32,psnr,ssim", "--work-dir", str(work / "work"),
        "--json", str(work / "row.json"), *changes, *words,
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((work / "row.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_a_benchmark_runs_to_the_end_on_a_bundled_model(name: str, tmp_path: Path) -> None:
    model = BUNDLED[name]
    features = "auto" if model == "fashion-ddpm" else "tiny_features:quarters"
    told, record = run_benchmark(name, tmp_path, "--model", model, "--set", f"evaluate.features={features}")
    assert "this run" in told
    assert all(
        row["method"] in told for row in read(ROOT / "benchmarks/paper" / f"{name}.toml").get("published", [])
    )
    assert f"this run is of {model}, the published rows are not" in told
    ours = {figure["metric"]: figure for figure in record["ours"] if figure["branch"] == "int8"}
    assert ours["psnr"]["value"] > 10
    assert ours["fid2fp32"]["low"] <= ours["fid2fp32"]["value"] <= ours["fid2fp32"]["high"]
    assert (tmp_path / "work" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_a_benchmark_downloads_the_model_that_it_names(
    name: str, tiny_text_pipeline: Callable[[str], Path], make_unet: Callable[..., Any], tmp_path: Path
) -> None:
    """As a user runs it, but for the Hub: a server on this machine has a tiny pipeline under that name."""
    from diffusers import DDPMPipeline, DDPMScheduler

    kind = {"imagenet": "dit", "sd14": "sd"}.get(name)
    if kind is None:
        network = make_unet(sample_size=32, in_channels=3, out_channels=3)
        DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    folder = tmp_path / "pipeline" if kind is None else tiny_text_pipeline(kind)
    (tmp_path / "prompts.txt").write_text("a\nb c\n")
    words = ["--prompts", str(tmp_path / "prompts.txt")] if name == "sd14" else []
    model = read(ROOT / "benchmarks" / "paper" / f"{name}.toml")["model"]
    with serve({model: {"main": folder}}) as hub:
        told, record = run_benchmark(
            name, tmp_path, "--set", "evaluate.features=tiny_features:quarters", *words,
            environment=hub.environment(tmp_path / "home"),
        )  # fmt: skip
        assert any(path.startswith(f"/{model}/resolve/") for path in hub.asked)
    assert "no figure can be compared" not in told
    assert {figure["metric"] for figure in record["ours"]} == {"fid2fp32", "psnr", "ssim"}
