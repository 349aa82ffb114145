"""Every export of a foreign .onnx is compared with its source, and says how much of it is int8."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_graphs import save, tiny_network
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import ExportError
from accuquant.export import write_onnx
from accuquant.export.read import onnx_source
from accuquant.export.write.compare import Comparison
from accuquant.observation.observe_onnx import observe_onnx

node = helper.make_node
CONV = node("Conv", ["a", "mid.weight"], ["r"], "mid", pads=[1] * 4)


def exported(path: Path, **options: Any) -> tuple[Comparison, list[Path]]:
    told: list[Comparison] = []
    files = write_onnx(
        path, observe_onnx(path, calls=1), path.with_name("int8.onnx"), compared=told.append, **options
    )
    return told[0], files


def output_of(path: Path, timestep: float = 500) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sample = np.random.default_rng(3).normal(size=(1, 4, 6, 6)).astype(np.float32)
    result: np.ndarray = session.run(None, {"sample": sample, "timestep": np.full(1, timestep, np.float32)})[
        0
    ]
    return result


def test_both_errors_are_measured_and_kept_in_the_file(tmp_path: Path) -> None:
    told, (path,) = exported(save(tiny_network(), tmp_path / "m.onnx"))
    assert told.float_error is not None
    assert told.float_error < 1e-5
    assert told.int8_error is not None
    expected, found = output_of(tmp_path / "m.onnx"), output_of(path)
    measured = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0.2 < told.int8_error / measured < 5
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["accuquant.compared"]) == told.to_dict()
    assert facts["accuquant.lowering"] == "rescale"
    onnx.checker.check_model(str(path))


def upsampling(opset: int) -> onnx.ModelProto:
    """A network that enlarges linearly, in an opset in which that has no coordinate transformation."""
    scales = np.array([1, 1, 2, 2], np.float32)
    operator = "Upsample" if opset == 9 else "Resize"
    middle = [node(operator, ["h", "scales"], ["a"], "up", mode="linear"), CONV]
    return tiny_network(middle, opset=opset, constants={"scales": scales})


@pytest.mark.parametrize("opset", [9, 10])
def test_an_old_resize_computes_what_it_did(tmp_path: Path, opset: int) -> None:
    told, (path,) = exported(save(upsampling(opset), tmp_path / "m.onnx"))
    assert told.float_error is not None
    assert told.float_error < 1e-5
    assert told.int8_error is not None
    assert told.int8_error < 0.1
    (resize,) = [n for n in onnx.load(path).graph.node if n.op_type == "Resize"]
    facts = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    assert facts["coordinate_transformation_mode"] == b"asymmetric"


def test_a_conversion_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_source, "_keep_asymmetric", lambda _graph: None)
    path = save(upsampling(10), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"a float graph that is off by 0\.\d+ of the output's norm"):
        exported(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_given_inputs_are_what_is_compared_on(tmp_path: Path) -> None:
    inputs = tmp_path / "in.npz"
    np.savez(inputs, sample=np.ones((1, 4, 8, 8), np.float32), timestep=np.full(1, 20, np.float32))
    told, _ = exported(save(tiny_network(), tmp_path / "m.onnx"), inputs=inputs)
    assert told.given == f"the first call of {inputs}"
    assert told.int8_error is not None


def test_without_onnxruntime_it_says_that_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tiny_network(), tmp_path / "m.onnx")
    recipe = observe_onnx(path, calls=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    told: list[Comparison] = []
    write_onnx(path, recipe, tmp_path / "int8.onnx", compared=told.append)
    assert (told[0].float_error, told[0].int8_error) == (None, None)
    assert "not compared: onnxruntime is not installed" in str(told[0])
    assert "int8: 1 of 3 layers" in str(told[0])


def test_a_bfloat16_source_is_compared_as_far_as_it_runs(tmp_path: Path) -> None:
    told, _ = exported(save(tiny_network(opset=22, kind=TensorProto.BFLOAT16), tmp_path / "m.onnx"))
    assert told.float_error is None
    assert "not compared: the source, of which ONNX Runtime computes no bfloat16" in str(told)
    assert told.int8_error is not None
    assert 1e-5 < told.int8_error < 0.1


def test_an_output_that_is_not_finite_is_no_comparison(tmp_path: Path) -> None:
    middle = [node("Tanh", ["h"], ["a"]), node("Conv", ["a", "mid.weight"], ["c"], "mid", pads=[1] * 4)]
    middle += [node("Log", ["c"], ["r"], "log")]
    told, _ = exported(save(tiny_network(middle), tmp_path / "m.onnx"))
    assert (told.float_error, told.int8_error) == (None, None)
    assert "output is not finite on random inputs; give --inputs" in str(told)


def test_each_step_groups_graph_is_marked(tmp_path: Path) -> None:
    told, files = exported(
        save(tiny_network(), tmp_path / "m.onnx"), lowering="per-group", external_data=True
    )
    assert told.int8_error is not None
    facts = {entry.key for entry in onnx.load(files[0], load_external_data=False).metadata_props}
    assert "accuquant.compared" in facts


def test_the_share_of_the_work_counts_every_convolution(tmp_path: Path) -> None:
    told, _ = exported(save(tiny_network(), tmp_path / "m.onnx"))
    first, mid, last = (8 * 4 * 9, 8 * 8 * 9, 4 * 8 * 9)
    assert (told.coverage.int8, told.coverage.layers) == (1, 3)
    assert told.coverage.share == pytest.approx(mid / (first + mid + last))
    assert not told.coverage.left
    assert "int8: 1 of 3 layers, 50.0% of the multiply-accumulates" in str(told)


def test_a_convolution_that_an_optimizer_fused_is_named(tmp_path: Path) -> None:
    fused = node(
        "FusedConv",
        ["h", "mid.weight"],
        ["a"],
        "fused",
        domain="com.microsoft",
        activation="Relu",
        pads=[1] * 4,
    )
    model = tiny_network([fused, node("Conv", ["a", "other"], ["r"], "plain", pads=[1] * 4)])
    other = np.random.default_rng(5).normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(other, "other"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    told, _ = exported(save(model, tmp_path / "m.onnx"))
    assert (told.coverage.int8, told.coverage.layers) == (1, 4)
    assert "warning: 1 of them stay float: FusedConv is an operator of com.microsoft" in str(told)
    assert told.coverage.share is not None
    assert told.coverage.share < 0.4, "the fused one's work counts"


def test_a_weight_that_the_graph_computes_is_named(tmp_path: Path) -> None:
    middle = [
        node("Abs", ["mid.weight"], ["computed"], "abs"),
        node("Conv", ["h", "computed"], ["b"], "bent", pads=[1] * 4),
        node("Conv", ["b", "other"], ["r"], "plain", pads=[1] * 4),
    ]
    other = np.random.default_rng(5).normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)
    told, _ = exported(save(tiny_network(middle, constants={"other": other}), tmp_path / "m.onnx"))
    assert dict(told.coverage.left) == {"Conv with a weight that the graph computes": 1}
