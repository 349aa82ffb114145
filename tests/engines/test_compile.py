"""Tests of the compiling process; those that compile do it with TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from accuquant.engines import BuildOptions, ShapeRange, Target, _child, compile, compile_engine
from accuquant.engines._compiler import fix_shapes, refused
from accuquant.engines.profile import static_profile
from accuquant.errors import EngineError, UsageError

MakeConv = Callable[..., Path]
ADA = Target(8, 9)


class Recorder:
    """Remembers the progress."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.units: list[int] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def advance(self, units: int = 1) -> None:
        self.units.append(units)

    def message(self, text: str) -> None:
        raise AssertionError(text)


def options(model: Path, **changes: Any) -> BuildOptions:
    fields: dict[str, Any] = {"target": ADA, "profile": static_profile(model, batch_size=2)}
    return BuildOptions(**(fields | changes))


@pytest.mark.trt
def test_an_engine_has_an_int8_convolution_in_its_log(make_conv: MakeConv, tmp_path: Path) -> None:
    model, recorder = make_conv(), Recorder()
    engine = compile_engine(model, tmp_path / "engines" / "conv.engine", options(model), progress=recorder)
    assert engine.library == "tensorrt_rtx"
    assert engine.plan.stat().st_size > 1000
    layers = [line for line in engine.log if "LayerType: correlation" in line]
    assert len(layers) == 1
    assert "Datatype: Int8" in layers[0]
    assert "[2,4,8,8]" in layers[0], "the batch is static"
    assert recorder.stages == [("compiling conv.onnx for sm89", 100)]
    assert sum(recorder.units) == 100
    assert min(recorder.units) >= 0


@pytest.mark.trt
def test_another_scale_and_another_target_give_another_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    first, second = make_conv("a.onnx"), make_conv("b.onnx", scale=0.06)
    plans = [
        compile_engine(first, tmp_path / "1", options(first)),
        compile_engine(second, tmp_path / "2", options(second)),
        compile_engine(first, tmp_path / "3", options(first, target=Target(12, 0))),
    ]
    assert len({engine.plan.read_bytes() for engine in plans}) == 3


@pytest.mark.trt
def test_a_dynamic_profile_is_in_the_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    model = make_conv()
    profile = {"x": ShapeRange((1, 4, 8, 8), (2, 4, 8, 8), (16, 4, 8, 8))}
    engine = compile_engine(model, tmp_path / "conv.engine", options(model, profile=profile))
    described = next(line for line in engine.log if "ProfileInfo" in line and "Name: x" in line)
    assert "MinShape: [1,4,8,8], OptShape: [2,4,8,8], MaxShape: [16,4,8,8]" in described


@pytest.mark.trt
def test_a_dynamic_scale_that_crashes_the_compiler_is_one_error(make_conv: MakeConv, tmp_path: Path) -> None:
    model = make_conv(dynamic_scale=True)
    with pytest.raises(EngineError, match=r"crash of the compiler \(Segmentation fault\)") as caught:
        compile_engine(model, tmp_path / "m.engine", options(model))
    assert "accuquant check" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conv.onnx"], "nothing half-written stays"


@pytest.mark.trt
def test_operators_that_the_parser_lacks_are_named(save_graph: MakeConv, tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], "the_determinant")]
    model = save_graph(tmp_path / "m.onnx", nodes, {}, [2, 4, 4])
    with pytest.raises(EngineError, match=r"does not have: Det \('the_determinant'\)"):
        compile_engine(model, tmp_path / "m.engine", options(model))


@pytest.mark.trt
def test_a_file_that_is_not_onnx_is_refused_by_the_parser(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="a graph that the parser refuses"):
        compile_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions(ADA))


@pytest.mark.trt
@pytest.mark.parametrize(
    ("profile", "match"),
    [
        ({}, "no shapes for x"),
        ({"z": ShapeRange.fixed((1,))}, "shapes for z, expected shapes for x"),
        ({"x": ShapeRange.fixed((1, 5, 8, 8))}, r"1x5x8x8 for 'x', expected shapes like \[any, 4, 8, 8\]"),
        ({"x": ShapeRange.fixed((1, 4))}, "for 'x'"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    make_conv: MakeConv, tmp_path: Path, profile: dict[str, ShapeRange], match: str
) -> None:
    model = make_conv()
    with pytest.raises(UsageError, match=match):
        compile_engine(model, tmp_path / "m.engine", options(model, profile=profile))
    assert not (tmp_path / "m.engine").exists()


@pytest.mark.usefixtures("rtx_by_name")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_compiler_is_reported_with_its_signal(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_conv()
    events = compile._events

    def kill_first(child: Any) -> Any:
        child.send_signal(signal.SIGKILL)
        return events(child)

    monkeypatch.setattr(compile, "_events", kill_first)
    with pytest.raises(EngineError, match=r"Killed.*If memory ran out"):
        compile_engine(model, tmp_path / "m.engine", options(model))


def test_what_the_child_reports_is_what_the_caller_sees() -> None:
    said = UsageError("profile", got="no shapes for x", expected="shapes for x", remedy="Give --optShapes")
    for fault in (said, EngineError("model 'm'", got="a refusal", expected="a network", remedy="Check it")):
        events: list[dict[str, Any]] = [{"percent": 7}, {"percent": 30}, {"error": _child._described(fault)}]
        recorder = Recorder()
        with pytest.raises(type(fault)) as caught:
            compile._follow(iter(events), recorder)
        assert str(caught.value) == str(fault)
        assert recorder.units == [7, 23]
    full = {"error": _child._described_os_error(OSError(errno.ENOSPC, "No space left on device", "/a/plan"))}
    with pytest.raises(OSError, match="No space left on device") as disk:
        compile._follow(iter([full]), Recorder())
    assert (disk.value.errno, disk.value.filename) == (errno.ENOSPC, "/a/plan")


def test_a_child_that_stops_in_the_middle_has_not_finished() -> None:
    recorder = Recorder()
    assert not compile._follow(iter([{"percent": 40}]), recorder)
    assert recorder.units == [40]
    assert compile._follow(iter([{"percent": 40}, {"finished": True}, {"percent": 50}]), recorder)
    assert recorder.units == [40, 40, 60]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"stderr": "first\n  last words \n\n", "log": "INFO: parsing"}, "'last words'"),
        ({"stderr": "\n", "log": "INFO: parsing"}, "'INFO: parsing'"),
        ({}, "none"),
    ],
)
def test_a_crash_is_told_with_the_last_words(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    fault = compile._crashed(Path("m.onnx"), 3, tmp_path)
    assert fault.got == f"a crash of the compiler (exit code 3), last words: {words}"
    assert "accuquant check" in fault.remedy


class Tensor:
    """An input of TensorRT's network, as the parser makes it."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class Network:
    """The part of trt.INetworkDefinition that knows of inputs."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.tensors = [Tensor(name, shape) for name, shape in inputs.items()]
        self.num_inputs = len(self.tensors)

    def get_input(self, index: int) -> Tensor:
        return self.tensors[index]


def test_an_input_with_one_shape_becomes_static_and_one_with_a_range_stays_dynamic() -> None:
    network: Any = Network(x=(-1, 4, 8, 8), t=(-1,), fixed=(3,))
    profile = {"x": [[2, 4, 8, 8]] * 3, "t": [[1], [2], [4]]}
    fix_shapes(network, {"profile": profile})
    assert [tuple(tensor.shape) for tensor in network.tensors] == [(2, 4, 8, 8), (-1,), (3,)]


@pytest.mark.parametrize(
    ("profile", "match"),
    [
        ({}, "no shapes for x, t, expected shapes for x, t, which are dynamic"),
        (
            {"x": [[1, 4]] * 3, "t": [[1]] * 3, "z": [[1]] * 3},
            "shapes for z, expected shapes for x, t, fixed",
        ),
        ({"x": [[1, 4]] * 3, "t": [[1]] * 3, "fixed": [[2]] * 3}, r"2 to 2 for 'fixed', expected .*\[3\]"),
        ({"x": [[1, 4], [1, 4], [1, 5]], "t": [[1]] * 3}, r"1x4 to 1x5 for 'x', expected .*\[any, 4\]"),
        ({"x": [[1, 5], [1, 5], [1, 4]], "t": [[1]] * 3}, "1x5 to 1x4 for 'x'"),
        ({"x": [[1]] * 3, "t": [[1]] * 3}, "1 to 1 for 'x'"),
    ],
)
def test_shapes_are_held_against_the_parsed_inputs(profile: dict[str, list[list[int]]], match: str) -> None:
    network: Any = Network(x=(-1, 4), t=(-1,), fixed=(3,))
    with pytest.raises(UsageError, match=match):
        fix_shapes(network, {"profile": profile})


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("libnvinfer_lean.so is missing", "Leave --versionCompatible out"),
        ("Assertion status == CUDA_SUCCESS failed", "leave --refit and --stripWeights out"),
        ("CUDA driver version is insufficient", "give --backend tensorrt_rtx"),
        ("something else", "accuquant check"),
    ],
)
def test_each_refusal_of_the_builder_has_its_remedy(reason: str, remedy: str) -> None:
    fault = refused("m.onnx", reason)
    assert reason in fault.got
    assert remedy in fault.remedy
