"""`accuquant calibrate --dry-run`: what it prints, and what it does not do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from accuquant.calibration.calls import Calls
from accuquant.calibration.estimate import Estimate
from accuquant.calibration.stage_costs import Need, StageEstimate
from accuquant.cli._estimate import print_estimate
from accuquant.cli.main import main
from accuquant.networks.room import Room

TINY = "--steps 2 --group-size 1 --num-trajectories 2 --batch-size 1 --observer minmax --rounding nearest"
GB = 10**9


def printed(estimate: Estimate) -> str:
    stream = io.StringIO()
    print_estimate(Console(file=stream, width=200, soft_wrap=True), estimate)
    return stream.getvalue()


def made(room: Room, *remedies: str) -> Estimate:
    stages = (
        StageEstimate("full-precision trajectories", 40, Calls(40, 0), 12.0, Need(GB, GB, GB, 0)),
        StageEstimate("step groups", 320, Calls(60, 50), 600.0, Need(2 * GB, GB, 0, 0)),
    )
    return Estimate(
        "cuda:0 (NVIDIA H200)", 7, 0.973, {"float by default": tuple("abcdef")}, ("Few inputs.",), stages,
        room, 3 * GB, remedies,
    )  # fmt: skip


def test_it_writes_no_recipe_and_json_says_the_same_as_the_table(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["calibrate", str(tiny_pipeline), *TINY.split(), "--device", "cpu"]
    assert main([*args, "--dry-run", "--json", "estimate.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["estimate.json"]
    data = json.loads((tmp_path / "estimate.json").read_text())
    output = capsys.readouterr().out
    assert f"{data['layers']} layers, {data['int8_share']:.1%} of the layers' multiply-accumulates" in output
    for stage in data["stages"]:
        row = next(line.split() for line in output.splitlines() if stage["name"] in line)
        words = len(stage["name"].split())
        calls = stage["calls"]["forward"] + stage["calls"]["backward"]
        assert row[words : words + 2] == [str(stage["units"]), str(calls)]
    assert "conv_in" in output
    assert "Next:" not in output


def test_json_on_stdout_leaves_the_table_to_stderr(
    tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["calibrate", str(tiny_pipeline), *TINY.split(), "--no-refine", "--dry-run", "--json", "-"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"]
    assert "network calls" in captured.err


def test_json_needs_a_dry_run(tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(tiny_pipeline), "--json", "-"]) == 2
    assert "--json holds what --dry-run prints" in capsys.readouterr().err


def test_main_memory_is_one_column_and_a_gpu_has_another() -> None:
    here = printed(made(Room(False, GB, 9 * GB, GB, 9 * GB)))
    rows = [line.split() for line in here.splitlines()]
    assert ["full-precision", "trajectories", "40", "40", "12", "s", "3.0", "GB"] in rows
    assert ["step", "groups", "320", "110", "10", "min", "3.0", "GB"] in rows
    assert "There is 10.0 GB of main memory" in here
    there = printed(made(Room(True, GB, 9 * GB, GB, 5 * GB)))
    rows = [line.split() for line in there.splitlines()]
    assert ["full-precision", "trajectories", "40", "40", "12", "s", "2.0", "GB", "1.0", "GB"] in rows
    assert "There is 10.0 GB on the GPU and 6.0 GB of main memory" in there


def test_it_says_what_is_left_out_what_gets_less_and_what_all_takes() -> None:
    text = printed(made(Room(False, GB, 9 * GB, GB, 9 * GB)))
    assert "7 layers, 97.3% of the layers' multiply-accumulates, in int8, on cuda:0 (NVIDIA H200)." in text
    assert "In float: 6 layers (a, b, c, d, ...); float by default." in text
    assert "Few inputs." in text
    assert "In all about 10 min and 150 calls of the network; learning may end earlier." in text
    assert "Disk, until the recipe is written: 3.0 GB." in text


def test_what_does_not_fit_is_said_with_the_remedy(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accuquant.networks.room.free_main_memory", lambda: 1000)
    args = ["calibrate", str(tiny_pipeline), *TINY.split(), "--no-refine", "--dry-run"]
    assert main(args) == 1
    output = capsys.readouterr().out
    assert "There is only" in output
    assert "GB more than there is" in output
