"""The shapes that an audit compiles for come from the command line, or from the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from accuquant.audit import audit_model
from accuquant.cli.main import main
from accuquant.engines import BuildOptions, ShapeRange
from accuquant.errors import EngineError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph that another tool wrote, without a signature."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["sample", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 4, "side", "side"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "side", "side"])],
        [onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_model_without_sizes_is_audited_for_those_of_the_command_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[BuildOptions] = []

    def compile_engine(_path: Path, _plan: Path, options: BuildOptions, **_: Any) -> None:
        compiled.append(options)
        raise EngineError("compiler", got="no more", expected="nothing", remedy="Stop here")

    monkeypatch.setattr(audit_model, "compile_engine", compile_engine)
    assert main(["audit", str(model)]) == 2
    assert "--optShapes=sample:Nx4xNxN" in " ".join(capsys.readouterr().err.split())
    assert main(["audit", str(model), "--optShapes", "sample:1x4x8x8"]) == 1
    assert dict(compiled[0].profile) == {"sample": ShapeRange.fixed((1, 4, 8, 8))}
    assert main(["audit", str(model), "--optShapes", "sample:1x4x8x8", "--batch-size", "2"]) == 2
    assert len(compiled) == 1
