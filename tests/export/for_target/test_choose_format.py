"""One export of an int8 and an FP8 recipe: which, on what that rests, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accuquant.audit.engine_audit import EngineAudit, Kernel, NodeWork
from accuquant.cli.main import main
from accuquant.engines import Target
from accuquant.errors import EngineError, UsageError
from accuquant.export.export_options import ExportOptions
from accuquant.export.for_target import choose_format
from accuquant.export.for_target.choose_format import decide_by_audit, decide_format, export_best_format
from accuquant.export.for_target.export_target import ExportTarget
from accuquant.manifest import Manifest
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


def audit(name: str, precision: str, kernels: int, traffic: float) -> EngineAudit:
    one = Kernel("k", "convolution", precision, (), (), (), traffic / kernels)
    work = (NodeWork("n", "n", "Conv", 10, precision, "k", False),)
    return EngineAudit(name, "sm89", "", 0.0, 1, {}, None, (one,) * kernels, work, (), ())


@pytest.fixture
def both(make_recipe: MakeRecipe) -> tuple[Recipe, Recipe]:
    """An int8 recipe and an FP8 one of the same network."""
    recipe = make_recipe(0.05, 0.04)
    share = np.float32(127 / 448)
    layers = {
        name: replace(
            layer, format="fp8", zero_point=0,
            weight_scale=layer.weight_scale * share, activation_scale=layer.activation_scale * share,
        )
        for name, layer in recipe.layers.items()
    }  # fmt: skip
    return recipe, replace(recipe, layers=layers)


@pytest.mark.parametrize(
    ("times", "best", "reason"),
    [
        (
            {"int8": 2.0, "fp8": 1.5, "fp16": 3.0},
            "fp8",
            "fp8 is faster (int8 2.00 ms, fp8 1.50 ms, fp16 3.00 ms)",
        ),
        ({"int8": 2.0, "fp8": 2.5, "fp16": 3.0}, "int8", "int8 is faster"),
        ({"int8": 2.0, "fp8": 1.96, "fp16": 3.0}, "int8", "alike, and int8 is closer"),
        ({"int8": 2.0, "fp8": 1.5, "fp16": 1.2}, "fp8", "fp16 without QDQ pairs is faster than both"),
    ],
)
def test_the_faster_is_taken_and_int8_where_they_are_alike(
    times: dict[str, float], best: str, reason: str
) -> None:
    decision = decide_format(times)
    assert (decision.format, decision.basis) == (best, "measurement")
    assert reason in decision.reason
    assert decision.figures[1] == {"format": "fp8", "milliseconds": times["fp8"]}


@pytest.mark.parametrize(
    ("int8", "fp8", "best", "reason"),
    [
        ((100, 10.0), (80, 8.0), "fp8", "fp8 should be faster, by 13 %"),
        ((80, 8.0), (100, 10.0), "int8", "int8 should be faster"),
        ((100, 10.0), (101, 10.0), "int8", "alike, and int8 is closer"),
        ((300, 90.0), (400, 95.0), "int8", "fp16 without QDQ pairs should be faster than both"),
    ],
)
def test_without_the_gpu_kernels_and_traffic_decide(
    int8: tuple[int, float], fp8: tuple[int, float], best: str, reason: str
) -> None:
    audits = {
        "int8": audit("a", "int8", *int8),
        "fp8": audit("b", "fp8", *fp8),
        "fp16": audit("c", "fp16", 100, 10.0),
    }
    decision = decide_by_audit(audits)
    assert (decision.format, decision.basis) == (best, "audit")
    assert reason in decision.reason


@pytest.mark.slow
@pytest.mark.parametrize(("target", "reason"), [("cpu", "emulate FP8"), ("sm86", "sm86 takes no FP8")])
def test_what_has_no_fp8_gets_int8_by_a_rule(
    source: Source, both: tuple[Recipe, Recipe], tmp_path: Path, target: str, reason: str
) -> None:
    options = ExportOptions(target, lowering="hybrid", precision="fp32")
    manifest = export_best_format(source, both[::-1], tmp_path / "out", options)
    assert Manifest.load(tmp_path / "out") == manifest
    assert manifest.choice is not None
    assert reason in manifest.choice.reason
    assert manifest.choice.reason.startswith("int8 of int8 and fp8, by rule:")
    assert Recipe.load(tmp_path / "out" / "recipe.safetensors").format == "int8"


@pytest.mark.slow
def test_times_on_the_gpu_of_this_machine_decide_and_a_fault_leaves_it_to_the_rest(
    source: Source, both: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ExportTarget(Target(8, 9), is_here=True)
    monkeypatch.setattr(choose_format, "resolve_target", lambda _name: here)
    measured: dict[str, Any] = {}

    def measure(folders: Any, *_: Any) -> dict[str, float]:
        measured.update({name: Manifest.load(folder).lowering for name, folder in folders.items()})
        return {"int8": 2.0, "fp8": 1.0, "fp16": 3.0}

    monkeypatch.setattr(choose_format, "_measure", measure)
    options = ExportOptions("sm89", lowering="rescale", precision="fp16")
    manifest = export_best_format(source, both, tmp_path / "out", options)
    assert manifest.choice is not None
    assert measured == {"int8": "rescale", "fp8": "rescale"}
    assert manifest.choice.reason.startswith("fp8 of int8 and fp8, by measurement: fp8 is faster")
    assert manifest.choice.candidates[0] == {"format": "int8", "milliseconds": 2.0}
    assert Recipe.load(tmp_path / "out" / "recipe.safetensors").format == "fp8"

    def fail(*_: Any, **__: Any) -> Any:
        raise EngineError("tensorrt", got="nothing", expected="a library", remedy="Install it")

    monkeypatch.setattr(choose_format, "_measure", fail)
    monkeypatch.setattr(choose_format, "audit_model", fail)
    choice = export_best_format(source, both, tmp_path / "out", options).choice
    assert choice is not None
    assert "int8 of int8 and fp8, by rule: int8 is closer" in choice.reason
    assert "(no measurement: tensorrt, nothing; no audit: tensorrt, nothing)" in choice.reason


def test_recipes_of_one_format_are_refused(
    source: Source, both: tuple[Recipe, Recipe], tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"--recipe: got 2 recipes of the format int8, expected one recipe, or"
    ):
        export_best_format(source, (both[0], both[0]), tmp_path / "out")


@pytest.mark.slow
def test_the_command_takes_a_second_recipe(
    pipeline: Path, both: tuple[Recipe, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{recipe.format}.safetensors" for recipe in both]
    for path, recipe in zip(paths, both, strict=True):
        recipe.save(path)
    command = ["export", str(pipeline), "--target", "cpu", "--lowering", "hybrid", "--precision", "fp32"]
    command += ["-o", str(tmp_path / "out"), "--or-recipe", str(paths[1])]
    assert main([*command, "--recipe", str(paths[0])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "int8 of int8 and fp8, by rule: CPUs compute int8" in shown
    assert main(command) == 2
    assert "--or-recipe: got no --recipe" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.trt
def test_for_a_gpu_that_is_not_here_both_formats_are_compiled_and_audited(
    source: Source, both: tuple[Recipe, Recipe], tmp_path: Path
) -> None:
    manifest = export_best_format(source, both, tmp_path / "out", ExportOptions("sm89", lowering="hybrid"))
    assert manifest.choice is not None
    taken = manifest.choice.reason.split()[0]
    assert taken in ("int8", "fp8")
    assert f"{taken} of int8 and fp8, by audit: " in manifest.choice.reason
    assert [figures["format"] for figures in manifest.choice.candidates] == ["int8", "fp8", "fp16"]
    assert all(figures["kernels"] > 0 for figures in manifest.choice.candidates)
    assert Recipe.load(tmp_path / "out" / "recipe.safetensors").format == taken
    assert json.loads((tmp_path / "out" / "accuquant.json").read_text())["choice"]["target"] == "sm89"
