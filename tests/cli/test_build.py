"""Tests of `accuquant build`; those that compile do it with TensorRT for RTX, the others need no library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from accuquant.cli.build import export_advice
from accuquant.cli.main import main
from accuquant.engine_manifest import EngineManifest
from accuquant.export_choice import ExportChoice
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Signature, TensorSpec

Make = Callable[..., Path]
RTX = ["--backend", "tensorrt_rtx", "--target", "sm89"]


@pytest.mark.trt
def test_a_model_becomes_an_engine_and_stays_one(make_conv: Make, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_conv()
    arguments = ["build", str(model), *RTX, "--batch-size", "2", "--json", "-"]
    assert main(arguments) == 0
    (first,) = json.loads(capsys.readouterr().out)
    engine = Path(first["engine"])
    assert engine == model.parent / "engines" / "sm89" / "tensorrt_rtx" / "conv.engine"
    assert first["bytes"] == engine.stat().st_size
    assert not first["reused"]
    EngineManifest.load(engine).check_engine(engine)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0]["reused"]


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_engines_of_several_targets_are_built_at_once_by_workers(
    make_conv: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    arguments = [
        "build",
        str(make_conv()),
        "--backend",
        "tensorrt_rtx",
        "--target",
        "sm86,sm89",
        "--json",
        "-",
    ]
    assert main([*arguments, "--workers", "2"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert [(engine["target"], engine["reused"]) for engine in built] == [("sm86", False), ("sm89", False)]
    for engine in built:
        EngineManifest.load(Path(engine["engine"])).check_engine(Path(engine["engine"]))
    assert main(arguments) == 0  # one process takes them for what it would have built
    again = json.loads(capsys.readouterr().out)
    assert [(engine["key"], engine["reused"]) for engine in again] == [(e["key"], True) for e in built]


@pytest.mark.trt
def test_the_path_of_an_engine_is_printed_in_one_piece(
    make_conv: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / ("a_long_name" * 8) / "conv.engine"
    assert main(["build", str(make_conv()), *RTX, f"--saveEngine={engine}"]) == 0
    assert str(engine) in capsys.readouterr().out


@pytest.mark.trt
def test_flags_of_trtexec_are_taken_and_those_it_lost_are_answered(
    make_conv: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, layers = tmp_path / "a.engine", tmp_path / "layers.json"
    flags = [
        f"--onnx={make_conv()}",
        f"--saveEngine={engine}",
        "--minShapes=x:1x4x8x8",
        "--optShapes=x:2x4x8x8",
        "--maxShapes=x:4x4x8x8",
        "--memPoolSize=workspace:64",
        f"--exportLayerInfo={layers}",
        "--int8",
        "--fp16",
        "--calib=table.cache",
    ]
    assert main(["build", *flags, *RTX]) == 0
    said = capsys.readouterr().err.splitlines()
    answered = [line.partition(" changes nothing")[0] for line in said if "changes nothing" in line]
    assert sorted(answered) == ["--calib", "--fp16", "--int8"]
    assert EngineManifest.load(engine).options["profile"]["x"][2] == [4, 4, 8, 8]
    described = json.loads(layers.read_text())["layers"]
    (convolution,) = [layer for layer in described if layer["kind"] == "correlation"]
    assert convolution["inputs"][0]["dtype"] == "Int8"
    assert "conv" in convolution["onnx_nodes"]


@pytest.fixture
def never_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the compiler is started."""
    monkeypatch.setattr("accuquant.engines.compile._run_child", lambda *_: pytest.fail("started"))


def one_line(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of a failed command."""
    assert code != 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("accuquant: ")
    assert captured.out == ""
    return line


@pytest.mark.usefixtures("rtx_by_name", "never_compiles")
def test_a_dynamic_scale_is_refused_before_the_compiler_crashes(
    make_conv: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_conv(dynamic_scale=True)
    line = one_line(main(["build", str(model), *RTX]), capsys)
    assert "node 'quantize': got scale 'scale' is a graph input" in line
    assert "crash of the compiler" not in line
    assert not (model.parent / "engines").exists()


@pytest.fixture
def float_conv(save_graph: Make, tmp_path: Path) -> Path:
    weight = {"w": np.ones((4, 4, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    return save_graph(tmp_path / "float.onnx", nodes, weight, [1, 4, 8, 8])


@pytest.mark.usefixtures("rtx_by_name", "never_compiles")
def test_a_model_without_pairs_is_refused(float_conv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(main(["build", str(float_conv), *RTX]), capsys)
    assert "no Q/DQ pair" in line
    assert "--allow-float" in line


@pytest.mark.trt
def test_a_model_without_pairs_is_compiled_where_it_is_wanted(float_conv: Path) -> None:
    assert main(["build", str(float_conv), *RTX, "--allow-float", "--quiet"]) == 0
    assert len(list(float_conv.parent.rglob("*.engine"))) == 1


@pytest.mark.usefixtures("rtx_by_name", "never_compiles")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "sm88"], "target 'sm88': got an unknown name, expected sm75 or sm80 or sm86"),
        (["--target", "sm89", "--optShapes=z:1"], "shapes for 'z', expected shapes for x"),
        (["--target", "sm89", "--minShapes=x:8x4x8x8", "--maxShapes=x:4x4x8x8"], "min <= opt <= max"),
        (["--target", "sm89", "--memPoolSize=heap:1"], "memPoolSize 'heap'"),
    ],
)
def test_bad_input_is_one_line_and_compiles_nothing(
    make_conv: Make, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    model = str(make_conv())
    line = one_line(main(["--quiet", "build", model, "--backend", "tensorrt_rtx", *arguments]), capsys)
    assert expected in line


@pytest.mark.trt
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--optShapes=x:1x5x8x8"], "1x5x8x8 for 'x', expected shapes like [any, 4"),
        (["--refit"], "Without a GPU leave --refit and --stripWeights out"),
        (["--versionCompatible"], "Leave --versionCompatible out"),
    ],
)
def test_what_the_compiler_refuses_is_one_line_and_leaves_no_engine(
    make_conv: Make, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    model = make_conv()
    assert expected in one_line(main(["--quiet", "build", str(model), *RTX, *arguments]), capsys)
    assert not list(model.parent.rglob("*.engine"))


@pytest.mark.trt
def test_a_full_disk_is_one_line(
    make_conv: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr("accuquant.engines.compile.atomic_write", on_a_full_disk)
    model = make_conv()
    line = one_line(main(["--quiet", "build", str(model), *RTX]), capsys)
    assert "the disk is full" in line
    assert not list(model.parent.rglob("*.engine"))


@pytest.mark.parametrize("arguments", [[], ["MODEL", "--onnx=MODEL"]])
def test_one_model_has_to_be_given(
    make_conv: Make, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    model = str(make_conv())
    given = [argument.replace("MODEL", model) for argument in arguments]
    assert "accuquant build OUT" in one_line(main(["build", *given]), capsys)


@pytest.mark.usefixtures("rtx_by_name")
def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no accuquant.json" in one_line(main(["build", str(tmp_path), *RTX]), capsys)


CHOSEN = {
    "": None,
    "cpu": ExportChoice("cpu", "fp32", "rescale", "rule", "exact"),
    "sm86": ExportChoice("sm86", "fp16", "rescale", "audit", "hybrid saves too little"),
}


@pytest.mark.parametrize(
    ("precision", "lowering", "edges", "chosen_for", "told"),
    [
        ("fp32", "rescale", (1000, 500, 0), "cpu", True),
        ("fp32", "rescale", (1000, 500, 0), "", True),
        ("fp16", "rescale", (1000, 500, 0), "", True),
        ("fp16", "rescale", (1000, 500, 0), "sm86", False),
        ("fp32", "rescale", (1000, 0), "", True),
        ("fp16", "rescale", (1000, 0), "", False),
        ("fp16", "hybrid", (1000, 500, 0), "", False),
        ("fp16", "per-group", (1000, 500, 0), "", False),
        ("fp32", "per-group", (1000, 500, 0), "", True),
    ],
)
def test_an_export_that_suits_a_gpu_badly_is_told_of_with_the_command(
    precision: str, lowering: str, edges: tuple[float, ...], chosen_for: str, told: bool
) -> None:
    sample = TensorSpec("sample", ("batch", 1, 8, 8))
    signature = Signature("UNet2DModel", sample, TensorSpec("timestep", (1,)), (), sample, {"batch": 1})
    manifest = Manifest(
        "DDIMPipeline", "unet", lowering, precision, 21, ("unet/model.onnx",), StepGroups(edges), signature,
        "hash", 50, "0.1.0", "my ddpm", choice=CHOSEN[chosen_for],
    )  # fmt: skip
    line = export_advice(Path("out/it"), manifest, "sm89")
    command = "accuquant export 'my ddpm' --recipe out/it/recipe.safetensors --target sm89 -o out/it-sm89"
    assert line.endswith(f": {command}") if told else line == ""
    assert "\n" not in line
