"""Tests that compile real engines with TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from accuquant.engines import BuildOptions, ShapeRange, Target, compile_engine
from accuquant.engines.profile import static_profile
from accuquant.errors import EngineError, UsageError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.trt
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
    return BuildOptions(**{"target": ADA, "profile": static_profile(model, batch_size=2)} | changes)


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


def test_another_scale_and_another_target_give_another_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    first, second = make_conv("a.onnx"), make_conv("b.onnx", scale=0.06)
    plans = [
        compile_engine(first, tmp_path / "1", options(first)),
        compile_engine(second, tmp_path / "2", options(second)),
        compile_engine(first, tmp_path / "3", options(first, target=Target(12, 0))),
    ]
    assert len({engine.plan.read_bytes() for engine in plans}) == 3


def test_a_dynamic_profile_is_in_the_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    model = make_conv()
    profile = {"x": ShapeRange((1, 4, 8, 8), (2, 4, 8, 8), (16, 4, 8, 8))}
    engine = compile_engine(model, tmp_path / "conv.engine", options(model, profile=profile))
    described = next(line for line in engine.log if "ProfileInfo" in line and "Name: x" in line)
    assert "MinShape: [1,4,8,8], OptShape: [2,4,8,8], MaxShape: [16,4,8,8]" in described


def test_a_dynamic_scale_that_crashes_the_compiler_is_one_error(make_conv: MakeConv, tmp_path: Path) -> None:
    model = make_conv(dynamic_scale=True)
    with pytest.raises(EngineError, match=r"crash of the compiler \(Segmentation fault\)") as caught:
        compile_engine(model, tmp_path / "m.engine", options(model))
    assert "accuquant check" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conv.onnx"], "nothing half-written stays"


def test_operators_that_the_parser_lacks_are_named(save_graph: MakeConv, tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], "the_determinant")]
    model = save_graph(tmp_path / "m.onnx", nodes, {}, [2, 4, 4])
    with pytest.raises(EngineError, match=r"does not have: Det \('the_determinant'\)"):
        compile_engine(model, tmp_path / "m.engine", options(model))


def test_a_file_that_is_not_onnx_is_refused_by_the_parser(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="a graph that the parser refuses"):
        compile_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions(ADA))


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


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_compiler_is_reported_with_its_signal(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accuquant.engines.compile as module

    model = make_conv()
    events = module._events

    def kill_first(child: Any) -> Any:
        child.send_signal(signal.SIGKILL)
        return events(child)

    monkeypatch.setattr(module, "_events", kill_first)
    with pytest.raises(EngineError, match=r"Killed.*If memory ran out"):
        compile_engine(model, tmp_path / "m.engine", options(model))
