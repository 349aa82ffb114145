"""TensorRT gets 4-bit weights as int8, and the layer still computes in int8; gathered rows as float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.engines import BuildOptions, Target, compile_engine
from accuquant.engines.known_storage import with_known_storage
from accuquant.engines.profile import static_profile

LEVELS = np.random.default_rng(0).integers(-8, 8, (6, 5, 3, 3))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """sample -> QDQ -> Conv, whose weight is INT4 -> Cast -> DequantizeLinear; 270 values, an even number."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["sample", "step", "zero"], ["levels"], "quantize"),
        node("DequantizeLinear", ["levels", "step", "zero"], ["grid"], "dequantize"),
        node("Cast", ["w4"], ["w8"], "widen", to=TensorProto.INT8),
        node("DequantizeLinear", ["w8", "steps"], ["w"], "weight", axis=0),
        node("Conv", ["grid", "w"], ["out_sample"], "conv", pads=[1, 1, 1, 1]),
    ]
    tensors = [
        helper.make_tensor("w4", TensorProto.INT4, LEVELS.shape, LEVELS.flatten().tolist()),
        numpy_helper.from_array(np.linspace(0.01, 0.02, 6, dtype=np.float32), "steps"),
        numpy_helper.from_array(np.array(0.05, np.float32), "step"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [2, 5, 8, 8])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [2, 6, 8, 8])],
        tensors,
    )
    path = tmp_path / "packed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sample = np.random.default_rng(1).normal(size=(2, 5, 8, 8)).astype(np.float32)
    output: np.ndarray = session.run(None, {"sample": sample})[0]
    return output


def test_the_copy_stores_the_same_levels_as_int8(packed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    copy, changes = with_known_storage(packed, work)
    assert copy.parent == work
    assert len(changes) == 1
    model = onnx.load(copy)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(found["w4_as_int8"]), LEVELS)
    assert not [node for node in model.graph.node if node.op_type == "Cast"]
    assert "w4" not in found
    np.testing.assert_array_equal(run(copy), run(packed))


def test_other_models_are_compiled_as_they_are(packed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    plain, _ = with_known_storage(packed, work)
    assert with_known_storage(plain, tmp_path / "unused") == (plain, ())


def embedding(path: Path, *, also_read: bool = False) -> Path:
    """Write ids -> Gather(int8 levels) -> Cast -> times the rows' scales, as text encoders are stored."""
    node = helper.make_node
    nodes = [
        node("Gather", ["levels", "ids"], ["rows"], "gather"),
        node("Cast", ["rows"], ["wide"], "cast", to=TensorProto.FLOAT),
        node("Gather", ["steps", "ids"], ["scales"], "scales"),
        node("Mul", ["wide", "scales"], ["out"], "mul"),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [3, 6])]
    if also_read:
        nodes.append(node("Identity", ["rows"], ["kept"], "identity"))
        outputs.append(helper.make_tensor_value_info("kept", TensorProto.INT8, [3, 6]))
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.integers(-128, 128, (9, 6)).astype(np.int8), "levels"),
        numpy_helper.from_array(rng.random((9, 1), np.float32), "steps"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [3])
    graph = helper.make_graph(nodes, "text", [ids], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_rows_that_are_gathered_from_levels_are_stored_in_float16_and_stay_what_they_are(
    tmp_path: Path,
) -> None:
    path = embedding(tmp_path / "text.onnx")
    (work := tmp_path / "work").mkdir()
    copy, (change,) = with_known_storage(path, work)
    assert "embeddings" in change
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(copy).graph.initializer}
    assert stored == {"steps": TensorProto.FLOAT, "levels_as_float16": TensorProto.FLOAT16}
    ids = {"ids": np.array([0, 8, 3])}
    given, made = (onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (path, copy))
    np.testing.assert_array_equal(made.run(None, ids)[0], given.run(None, ids)[0])


def test_rows_that_are_read_as_integers_stay_integers(tmp_path: Path) -> None:
    path = embedding(tmp_path / "text.onnx", also_read=True)
    assert with_known_storage(path, tmp_path) == (path, ())


@pytest.mark.trt
def test_tensorrt_computes_the_layer_in_int8_and_says_what_it_was_given(packed: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listener:
        def stage(self, name: str, total: int) -> None:
            pass

        def advance(self, units: int = 1) -> None:
            pass

        def message(self, text: str) -> None:
            said.append(text)

    options = BuildOptions(target=Target(8, 9), profile=static_profile(packed, batch_size=2))
    engine = compile_engine(packed, tmp_path / "packed.engine", options, progress=Listener())
    (layer,) = [line for line in engine.log if "LayerType: correlation" in line]
    assert "Datatype: Int8" in layer
    assert said == ["Weights in 4 bits are compiled as int8: TensorRT would compute with them in float"]
