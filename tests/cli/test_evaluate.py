from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from accuquant.cli import evaluate as cli
from accuquant.cli._cluster import take_cluster
from accuquant.cli._options import take_weights_options
from accuquant.cli._source import take_loading
from accuquant.cli._task import take_task
from accuquant.cli.main import main
from accuquant.evaluation.bootstrap import Interval
from accuquant.evaluation.evaluation_settings import EvaluationSettings
from accuquant.evaluation.figures import Difference, Figure
from accuquant.evaluation.metrics import METRICS
from accuquant.evaluation.page import render_page
from accuquant.evaluation.result import Evaluation
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.task import Task
from accuquant.verification.measure.metrics import Curve


@pytest.fixture
def evaluation() -> Evaluation:
    """A result as `evaluate` makes it, of two exports."""
    curve = Curve.of(np.array([[1e-4, 2e-4], [3e-4, 5e-4]]))
    return Evaluation(
        model={"name": "toy", "image_shape": [1, 32, 32]},
        settings={
            "folder": "out", "against": "other<", "num_images": 64, "steps": 2, "engine": "openvino",
            "bits": "W8A8", "scheduler": "DDIMScheduler", "lowering": "rescale", "features": "fashion",
            "seed": 3,
        },
        versions={"accuquant": "0.1.0"},
        figures=(
            Figure("fid2fp32", "int8", Interval(0.5, 0.4, 0.6)),
            Figure("psnr", "int8", Interval(40.25, 39.0, 41.0)),
            Figure("psnr", "other", Interval(38.0, 37.0, 39.0)),
        ),
        differences=(Difference("psnr", "int8", "other", Interval(2.25, 1.5, 3.0)),),
        counts=(2, 4),
        by_count={"fid2fp32": (float("nan"), 0.5), "psnr": (40.0, 40.25)},
        by_step={"int8": curve, "other": curve},
        images={"psnr.int8": (40.0, 40.5), "psnr.other": (38.0, 38.0)},
        notes=("A note.",),
    )  # fmt: skip


def test_evaluate_has_the_defaults_of_the_library(tmp_path: Path) -> None:
    given = cli.command.make_context("evaluate", [str(tmp_path), "--reference", "source"]).params
    assert take_task(given) == Task()
    assert given.pop("loras") == ()
    assert take_loading(given) == Loading()
    assert (given.pop("device"), given.pop("tf32")) == ("auto", False)
    assert take_weights_options(given) == {"as_stored": True, "offload": False}
    assert take_cluster(given) is None
    for name in ("folder", "reference", "json_file", "html_file", "steps", "work"):
        del given[name]
    assert EvaluationSettings(**given | {"weights": dict(given["weights"])}) == EvaluationSettings()
    assert given.keys() == inspect.signature(EvaluationSettings).parameters.keys()


def test_the_help_names_every_metric() -> None:
    help_text = cli.command.get_help(click.Context(cli.command))
    words = help_text.replace(",", " ").replace(".", " ").split()
    assert set(METRICS) <= set(words)


def test_figures_are_a_table_and_differences_are_sentences(
    evaluation: Evaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def run(folder: Path, reference: str, options: Mapping[str, Any]) -> Evaluation:
        asked.update(options)
        return evaluation

    monkeypatch.setattr(cli, "run", run)
    words = [
        "evaluate",
        str(tmp_path),
        "--reference",
        "s",
        "--metrics",
        "psnr, fid",
        "--weights",
        "lpips=~/a",
    ]
    assert main([*words, "--json", str(tmp_path / "e.json"), "--html", str(tmp_path / "e.html")]) == 0
    printed = capsys.readouterr().out
    assert ["PSNR", "out", "40.25", "dB", "39", "to", "41", "higher"] in [
        x.split() for x in printed.splitlines()
    ]
    assert (
        "PSNR, out minus other<: +2.25 dB (95 % interval +1.5 to +3). They differ: out is better." in printed
    )
    assert "Note: A note." in printed
    assert asked["metrics"] == ("psnr", "fid")
    assert asked["weights"] == (("lpips", Path("~/a").expanduser()),)
    assert json.loads((tmp_path / "e.json").read_text())["by_count"]["curves"]["fid2fp32"] == [None, 0.5]
    assert "How the figures settle" in (tmp_path / "e.html").read_text()


def test_the_page_shows_every_figure_and_needs_no_other_file(evaluation: Evaluation) -> None:
    page = render_page(evaluation)
    for text in ("<td>FID2FP32</td>", "40.25", "37.00 to 39.00", "out minus other&lt;", "A note.", "<svg"):
        assert text in page
    assert "src=" not in page
    assert "other<" not in page


def test_a_weight_without_a_path_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.command, [str(tmp_path), "--reference", "s", "--weights", "lpips"])
    assert result.exit_code == 2
    assert "'lpips' is not NAME=PATH." in result.output


def test_a_folder_that_is_no_export_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--reference", "s"]) != 0
    assert "accuquant.json" in capsys.readouterr().err
