"""Exports for a target: what is chosen, on what it rests, and what is left behind."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir
import pytest

from accuquant.choosing import choose, export_onnx_for, export_pipeline_for
from accuquant.cli.main import main
from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.export import export_pipeline
from accuquant.export.float_graph import trace
from accuquant.manifest import MANIFEST_NAME, Manifest
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
#: Close enough that `hybrid` shares them, and too far apart.
CLOSE, APART = (0.05, 0.04), (0.05, 0.01)


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide both TensorRT libraries."""
    find = importlib.util.find_spec

    def hiding(name: str, package: str | None = None) -> Any:
        return None if name in ("tensorrt", "tensorrt_rtx") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hiding)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file but the manifest, which names the choice."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def alone(folder: Path) -> bool:
    """Return whether `folder` is all that its parent holds: no scratch was left."""
    return list(folder.parent.iterdir()) == [folder]


def test_a_cpu_gets_one_exact_graph_in_float32(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    manifest = export_pipeline_for(source, make_recipe(*CLOSE), tmp_path / "a" / "out", "cpu")
    assert manifest.choice is not None
    assert (manifest.choice.target, manifest.choice.basis) == ("cpu", "rule")
    assert alone(tmp_path / "a" / "out")
    export_pipeline(source, make_recipe(*CLOSE), tmp_path / "named", lowering="rescale", precision="fp32")
    assert files(tmp_path / "a" / "out") == files(tmp_path / "named")


def test_what_is_named_costs_nothing_and_is_not_a_choice(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("accuquant.choosing.target.find_gpu", unwanted)
    monkeypatch.setattr("accuquant.choosing.export_for.choose_lowering", unwanted)
    for target in (None, "sm89", "cpu"):
        manifest = export_pipeline_for(
            source, make_recipe(*CLOSE), tmp_path / "out", target, lowering="rescale", precision="fp16"
        )
        assert (manifest.lowering, manifest.precision, manifest.choice) == ("rescale", "fp16", None)


def test_a_named_lowering_still_gets_the_precision_of_its_target(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for target, precision in (("sm89", "fp16"), ("cpu", "fp32")):
        manifest = export_pipeline_for(
            source, make_recipe(*CLOSE), tmp_path / target, target, lowering="per-group"
        )
        assert (manifest.lowering, manifest.precision) == ("per-group", precision)


def test_where_no_scale_changes_nothing_is_compiled(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    manifest = export_pipeline_for(source, make_recipe(0.05, 0.05), tmp_path / "out", "sm89")
    assert manifest.choice is not None
    assert (manifest.lowering, manifest.precision, manifest.choice.basis) == ("rescale", "fp16", "rule")
    assert "no scale depends on the step group" in manifest.choice.reason
    assert not (tmp_path / "out" / "engines").exists()


@pytest.mark.usefixtures("no_tensorrt")
@pytest.mark.parametrize(("scales", "lowering"), [(CLOSE, "hybrid"), (APART, "rescale")])
def test_without_a_compiler_a_rule_decides_and_says_so(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path, scales: tuple[float, ...], lowering: str
) -> None:
    manifest = export_pipeline_for(source, make_recipe(*scales), tmp_path / "a" / "out", "sm89")
    assert manifest.choice is not None
    assert (manifest.lowering, manifest.choice.basis) == (lowering, "rule")
    assert "no audit: backend tensorrt_rtx, no such package" in manifest.choice.reason
    assert alone(tmp_path / "a" / "out")


def test_a_network_that_is_too_large_to_compile_twice_gets_the_rule(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MAX_FLOAT_BYTES", 1000)
    manifest = export_pipeline_for(source, make_recipe(*CLOSE), tmp_path / "out", "sm89")
    assert manifest.choice is not None
    assert manifest.choice.basis == "rule"
    assert "too many to compile only to choose" in manifest.choice.reason


@pytest.fixture(scope="module")
def audited(source: Source, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for a GPU that is not here, chosen by the audit."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("audited") / "out"
    export_pipeline_for(source, make_recipe(*CLOSE), folder, "sm89")
    return folder


@pytest.mark.trt
def test_the_audit_compares_what_the_export_would_write(
    audited: Path, source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from accuquant.audit.audit_model import audit_model
    from accuquant.engines import Target

    choice = Manifest.load(audited).choice
    assert choice is not None
    assert (choice.basis, choice.target, choice.precision) == ("audit", "sm89", "fp16")
    compared = {figures["lowering"]: figures for figures in choice.candidates}
    assert list(compared) == ["rescale", "hybrid", "per-group"]
    assert compared["rescale"]["kernels"] > compared["per-group"]["kernels"]
    export_pipeline(source, make_recipe(*CLOSE), tmp_path / "out", lowering="per-group", precision="fp16")
    alone_audit = audit_model(tmp_path / "out", Target(8, 9), backend="tensorrt_rtx").subject
    figures = compared["per-group"]
    assert (figures["kernels"], figures["traffic"]) == (alone_audit.num_kernels, alone_audit.traffic)
    assert figures["engines"] == alone_audit.num_engines == 2


@pytest.mark.trt
def test_the_export_is_as_if_its_options_had_been_named(
    audited: Path, source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    manifest = Manifest.load(audited)
    manifest.check_files(audited)
    named: dict[str, Any] = {"lowering": manifest.lowering, "precision": manifest.precision}
    again = export_pipeline(source, make_recipe(*CLOSE), tmp_path / "named", **named)
    assert again.files == manifest.files
    assert replace(manifest, choice=None) == again
    assert alone(audited)


@pytest.mark.trt
def test_the_engine_that_was_compiled_to_choose_is_not_compiled_again(
    audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Manifest.load(audited).graphs[0]
    kept = EngineManifest.load(engine_path(audited, first, "sm89", "tensorrt_rtx"))
    arguments = ["build", str(audited), "--backend", "tensorrt_rtx", "--target", "sm89"]
    assert kept.rebuild == " ".join(["accuquant", *arguments])
    assert main([*arguments, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert [engine["reused"] for engine in json.loads(captured.out)][0]
    assert "need not suit" not in captured.err


@pytest.mark.trt
def test_the_command_says_what_it_chose_and_why(
    pipeline: Path, make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    make_recipe(*APART).save(tmp_path / "recipe.safetensors")
    output = tmp_path / "out"
    arguments = ["export", str(pipeline), "--recipe", str(tmp_path / "recipe.safetensors"), "-o", str(output)]
    assert main([*arguments, "--target", "sm86", "--precision", "fp32"]) == 0
    manifest = Manifest.load(output)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"Chosen for sm86: --precision fp32 --lowering {manifest.lowering}"
    assert second.startswith("  by audit: ")
    assert "hybrid" not in second, "it would share nothing"
    assert last == f"Exported {output}"


@pytest.mark.trt
def test_an_onnx_file_gets_its_lowering_and_engine_too(
    source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    onnx_ir.save(trace(source.network, source.signature, dynamic=False), tmp_path / "float.onnx")
    output = tmp_path / "made" / "int8.onnx"
    written, choice = export_onnx_for(tmp_path / "float.onnx", make_recipe(*APART), output, "sm89")
    assert choice is not None
    assert choice.basis == "audit"
    engine = engine_path(output.parent, written[0].name, "sm89", "tensorrt_rtx")
    EngineManifest.load(engine).check_engine(engine)
    assert {path.name for path in output.parent.iterdir()} == {*(path.name for path in written), "engines"}


@pytest.mark.gpu
def test_on_a_gpu_the_lowerings_are_timed(source: Source, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    manifest = export_pipeline_for(source, make_recipe(*CLOSE), tmp_path / "out", "gpu")
    choice = manifest.choice
    assert choice is not None
    assert choice.basis == "measurement", choice.reason
    assert [figures["lowering"] for figures in choice.candidates] == ["rescale", "hybrid", "per-group"]
    assert all(figures["milliseconds"] > 0 for figures in choice.candidates)
    assert " ms" in choice.reason
