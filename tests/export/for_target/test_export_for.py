"""Exports for a target: what is chosen, on what it rests, and what is left behind."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from accuquant._util.gpu import Gpu
from accuquant.audit.audit_model import audit_model
from accuquant.cli.main import main
from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.engines import Target
from accuquant.export import write_onnx, write_pipeline
from accuquant.export.export_options import ExportOptions
from accuquant.export.for_target import choose, export_onnx, export_pipeline
from accuquant.export.lint.check_model import check_model
from accuquant.manifest import Manifest
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
#: Close enough that `hybrid` shares them, and too far apart.
CLOSE, APART = (0.05, 0.04), (0.05, 0.01)
SM89, HERE = ExportOptions("sm89"), ExportOptions("gpu")


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide both TensorRT libraries."""
    find = importlib.util.find_spec

    def hiding(name: str, package: str | None = None) -> Any:
        return None if name in ("tensorrt", "tensorrt_rtx") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hiding)


def described(graph: Path) -> dict[str, str]:
    """Return what an exported graph says of itself."""
    metadata = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    return {name: metadata[f"accuquant.{name}"] for name in ("lowering", "precision")}


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_reason_speaks_of_float32_only_where_it_is_written(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, precision: Any
) -> None:
    options = ExportOptions("cpu", precision=precision)
    _, choice = export_onnx(float_graph, make_recipe(*CLOSE), tmp_path / "a.onnx", options)
    assert choice is not None
    assert ("float32 around int8" in choice.reason) == (choice.precision == "fp32")


def test_a_cpu_gets_one_exact_graph_in_float32(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(*CLOSE)
    written, choice = export_onnx(float_graph, recipe, tmp_path / "a.onnx", ExportOptions("cpu"))
    assert choice is not None
    assert (choice.target, choice.basis) == ("cpu", "rule")
    assert sorted(tmp_path.iterdir()) == sorted(written)
    (named,) = write_onnx(float_graph, recipe, tmp_path / "b.onnx", lowering="rescale", precision="fp32")
    assert written[0].read_bytes() == named.read_bytes()


@pytest.mark.parametrize(
    ("target", "affine", "inside"),
    [
        ("cpu", "auto", False),
        (None, "auto", False),
        ("sm89", "auto", False),
        ("cpu", "shift", False),
        ("cpu", "zero_point", True),
    ],
)
def test_zero_points_lie_inside_the_pairs_only_where_that_is_named(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, target: str | None, affine: Any, inside: bool
) -> None:
    recipe = make_recipe(0.05, 0.05)
    layers = {name: replace(layer, zero_point=-100) for name, layer in recipe.layers.items()}
    written, choice = export_onnx(
        float_graph, replace(recipe, layers=layers), tmp_path / "q.onnx", ExportOptions(target, affine=affine)
    )
    assert {violation.rule for violation in check_model(written[0])} == ({"zero-point"} if inside else set())
    assert choice is not None
    assert ("zero-points inside QDQ pairs" in choice.reason) == inside


def test_what_is_named_costs_nothing_and_is_not_a_choice(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("accuquant.export.for_target.export_target.find_gpu", unwanted)
    monkeypatch.setattr("accuquant.export.for_target.settle.choose_lowering", unwanted)
    named: dict[str, Any] = {"lowering": "rescale", "precision": "fp16"}
    for target in (None, "sm89", "cpu"):
        written, choice = export_onnx(
            float_graph, make_recipe(*CLOSE), tmp_path / "q.onnx", ExportOptions(target, **named)
        )
        assert (choice, len(written)) == (None, 1)
        assert described(written[0]) == named


def test_a_named_lowering_still_gets_the_precision_of_its_target(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for target, precision in (("sm89", "fp16"), ("cpu", "fp32")):
        written, choice = export_onnx(
            float_graph, make_recipe(*CLOSE), tmp_path / "q.onnx", ExportOptions(target, lowering="per-group")
        )
        assert choice is None
        assert described(written[0]) == {"lowering": "per-group", "precision": precision}


WITHOUT_TORCH = """
import sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers", "onnxscript"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Block())
from accuquant.export.export_options import ExportOptions
from accuquant.export.for_target import export_onnx
from accuquant.recipe import Recipe

graph, recipe, output = map(Path, sys.argv[1:])
written, choice = export_onnx(graph, Recipe.load(recipe), output, ExportOptions("cpu"))
print(choice.lowering, choice.precision, *(path.name for path in written))
"""


def test_an_onnx_file_is_quantized_where_torch_is_not_installed(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe, (here, there) = make_recipe(*CLOSE), (tmp_path / "here.onnx", tmp_path / "there.onnx")
    recipe.save(tmp_path / "recipe.safetensors")
    command = [sys.executable, "-c", WITHOUT_TORCH, float_graph, tmp_path / "recipe.safetensors", there]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, choice = export_onnx(float_graph, recipe, here, ExportOptions("cpu"))
    assert choice is not None
    names = [path.name.replace("here", "there") for path in written]
    assert done.stdout.split() == [choice.lowering, choice.precision, *names]
    graphs = [onnx.load(path).graph for path in (here, there)]
    assert len({str([(node.op_type, node.name, node.input) for node in graph.node]) for graph in graphs}) == 1


def test_where_no_scale_changes_nothing_is_compiled(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    written, choice = export_onnx(float_graph, make_recipe(0.05, 0.05), tmp_path / "q.onnx", SM89)
    assert choice is not None
    assert (choice.lowering, choice.precision, choice.basis) == ("rescale", "fp16", "rule")
    assert "no other lowering would make another graph" in choice.reason
    assert sorted(tmp_path.iterdir()) == sorted(written)


@pytest.mark.usefixtures("no_tensorrt")
@pytest.mark.parametrize(("scales", "lowering"), [(CLOSE, "hybrid"), (APART, "rescale")])
def test_without_a_compiler_a_rule_decides_and_says_so(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, scales: tuple[float, ...], lowering: str
) -> None:
    written, choice = export_onnx(float_graph, make_recipe(*scales), tmp_path / "q.onnx", SM89)
    assert choice is not None
    assert (choice.lowering, choice.basis) == (lowering, "rule")
    assert "no audit: backend tensorrt_rtx, no such package" in choice.reason
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_a_network_that_is_too_large_to_compile_twice_gets_the_rule(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MAX_FLOAT_BYTES", 1000)
    choice = export_onnx(float_graph, make_recipe(*CLOSE), tmp_path / "q.onnx", SM89)[1]
    assert choice is not None
    assert choice.basis == "rule"
    assert "too many to compile only to choose" in choice.reason


@pytest.fixture(scope="module")
def audited(source: Source, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export for a GPU that is not here, chosen by the audit."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("audited") / "out"
    export_pipeline(source, make_recipe(*CLOSE), folder, SM89)
    return folder


@pytest.mark.slow
@pytest.mark.trt
def test_the_audit_compares_what_the_export_would_write(
    audited: Path, source: Source, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    manifest = Manifest.load(audited)
    manifest.check_files(audited)
    choice = manifest.choice
    assert choice is not None
    assert (choice.basis, choice.target, choice.precision) == ("audit", "sm89", "fp16")
    compared = {figures["lowering"]: figures for figures in choice.candidates}
    assert list(compared) == ["rescale", "hybrid", "per-group"]
    assert compared["rescale"]["kernels"] > compared["per-group"]["kernels"]
    # the same export with its options named, and the audit of that
    options: dict[str, Any] = {"lowering": manifest.lowering, "precision": manifest.precision}
    named = write_pipeline(source, make_recipe(*CLOSE), tmp_path / "named", **options)
    assert named == replace(manifest, choice=None)
    audit = audit_model(tmp_path / "named", Target(8, 9), backend="tensorrt_rtx").subject
    figures = compared[manifest.lowering]
    assert (figures["kernels"], figures["traffic"]) == (audit.num_kernels, audit.traffic)
    assert figures["engines"] == audit.num_engines
    assert list(audited.parent.iterdir()) == [audited], "no scratch was left"


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
    assert json.loads(captured.out)[0]["reused"]
    assert "need not suit" not in captured.err


@pytest.mark.slow
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
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    written, choice = export_onnx(float_graph, make_recipe(*APART), tmp_path / "int8.onnx", SM89)
    assert choice is not None
    assert choice.basis == "audit"
    engine = engine_path(tmp_path, written[0].name, "sm89", "tensorrt_rtx")
    EngineManifest.load(engine).check_engine(engine)
    assert sorted(tmp_path.iterdir()) == sorted([*written, tmp_path / "engines"])


@pytest.mark.trt
def test_a_graph_that_the_compiler_refuses_gets_the_rule_with_its_words(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(float_graph)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Det", ["before"], [model.graph.output[0].name], "last"))
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    onnx.save(model, tmp_path / "float.onnx")
    monkeypatch.setattr(
        "accuquant.export.for_target.export_target.find_gpu", lambda: Gpu("L4", (8, 9), (13, 0))
    )
    arguments = (tmp_path / "float.onnx", make_recipe(*APART), tmp_path / "int8.onnx")
    choice = export_onnx(*arguments, HERE)[1]
    assert choice is not None
    assert (choice.lowering, choice.basis) == ("rescale", "rule")
    assert choice.reason.count("operators that TensorRT does not have: Det") == 2


@pytest.mark.trt
def test_a_gpu_that_cannot_run_the_engines_is_told_of_and_they_are_audited(
    float_graph: Path, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU of this machine, as far as the choice knows; its driver is not there."""
    pytest.importorskip("tensorrt_rtx")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaDriverGetVersion()[1]:
        pytest.skip("there is a driver")
    monkeypatch.setattr(
        "accuquant.export.for_target.export_target.find_gpu", lambda: Gpu("L4", (8, 9), (13, 0))
    )
    choice = export_onnx(float_graph, make_recipe(*APART), tmp_path / "int8.onnx", HERE)[1]
    assert choice is not None
    assert (choice.target, choice.basis) == ("sm89", "audit")
    assert "(no measurement: GPU, no NVIDIA driver)" in choice.reason


@pytest.mark.gpu
def test_on_a_gpu_the_lowerings_are_timed(source: Source, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    manifest = export_pipeline(source, make_recipe(*CLOSE), tmp_path / "out", HERE)
    choice = manifest.choice
    assert choice is not None
    assert choice.basis == "measurement", choice.reason
    assert [figures["lowering"] for figures in choice.candidates] == ["rescale", "hybrid", "per-group"]
    assert all(figures["milliseconds"] > 0 for figures in choice.candidates)
    assert " ms" in choice.reason
