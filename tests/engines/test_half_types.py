"""Turing has no bfloat16: what needs it is refused before anything is compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.engines import BuildOptions, Target, compile_engine
from accuquant.engines.half_types import check_half_types
from accuquant.errors import EngineError, SourceError

TURING, AMPERE = Target(7, 5), Target(8, 0)


def save(path: Path, half: int, *, as_weight: bool) -> Path:
    """Write x -> Cast -> [Add a weight] -> Cast -> y, in the type `half`."""
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=half)]
    weights = []
    if as_weight:
        dtype = helper.tensor_dtype_to_np_dtype(half)
        weights = [numpy_helper.from_array(np.ones(2).astype(dtype), "w")]
        nodes = [helper.make_node("CastLike", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "w"], ["a"])]
    nodes.append(helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path


@pytest.mark.parametrize("as_weight", [False, True])
def test_bfloat16_is_refused_for_turing_alone(tmp_path: Path, as_weight: bool) -> None:
    brain = save(tmp_path / "brain.onnx", TensorProto.BFLOAT16, as_weight=as_weight)
    with pytest.raises(EngineError, match=r"bfloat16, which sm75 .* Export with --precision fp16"):
        check_half_types(brain, TURING)
    check_half_types(brain, AMPERE)
    check_half_types(save(tmp_path / "half.onnx", TensorProto.FLOAT16, as_weight=as_weight), TURING)


def test_fp8_is_refused_before_ada(tmp_path: Path) -> None:
    model = save(tmp_path / "fp8.onnx", TensorProto.FLOAT8E4M3FN, as_weight=True)
    for target in (TURING, AMPERE, Target(8, 6)):
        with pytest.raises(EngineError, match=rf"FP8, which {target} \(.*expected a target from sm89 on"):
            check_half_types(model, target)
    for target in (Target(8, 9), Target(9, 0), Target(12, 0)):
        check_half_types(model, target)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(SourceError, match="a file that is not ONNX"):
        check_half_types(tmp_path / "m.onnx", TURING)


@pytest.mark.trt
def test_the_compiler_is_not_started_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("accuquant.engines.compile._run_child", lambda *_: pytest.fail("started"))
    model = save(tmp_path / "brain.onnx", TensorProto.BFLOAT16, as_weight=False)
    with pytest.raises(EngineError, match="sm75"):
        compile_engine(model, tmp_path / "plan", BuildOptions(TURING))
    assert [path.name for path in tmp_path.iterdir()] == ["brain.onnx"]
