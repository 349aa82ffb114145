"""What ends an engine's process, or fills its memory, is found before an engine opens the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import EngineError, SourceError
from accuquant.export import check_model
from accuquant.export.read.onnx_source import read_model
from accuquant.graph.skeleton import element_bits, read_skeleton
from accuquant.graph.soundness import check_sound, find_fault
from accuquant.runtime.open_runner import open_runner

Change = Callable[[onnx.ModelProto], Any]


def model_of(channels: int = 64) -> onnx.ModelProto:
    """Two convolutions: a weight above what a skeleton keeps, and one below it."""
    rng = np.random.default_rng(0)
    weights = {"wide": (channels, 4, 3, 3), "small": (4, channels, 1, 1)}
    shape: list[str | int | None] = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "wide"], ["h"], "first", pads=[1] * 4),
            helper.make_node("Conv", ["h", "small"], ["y"], "last"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def set_input(extent: int) -> Change:
    return lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", extent)


def add_huge(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"], "fill"))


def raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 2**40


FAULTS: dict[str, tuple[Change, str]] = {
    "a convolution without a weight": (lambda m: m.graph.node[0].input.pop(), "Conv"),
    "an operator that is not there": (lambda m: setattr(m.graph.node[0], "op_type", "Convv"), "Convv"),
    "a tensor that nothing writes": (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "'q'"),
    "an output that nothing writes": (lambda m: setattr(m.graph.output[0], "name", "q"), "q"),
    "no output": (lambda m: m.graph.output.pop(), "a graph without an output"),
    "a negative extent": (set_input(-1), "'x' with an extent of -1"),
    "10^8 squared": (set_input(10**10), "'x' of 4e.10 elements"),
    "2^62": (set_input(2**62), "elements, more than"),
    "opset 2^40": (raise_opset, "opset 1099511627776"),
    "a type that is not there": (
        lambda m: setattr(m.graph.initializer[1], "data_type", 99),
        "unknown type 99",
    ),
    "a weight of other bytes": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(8000)),
        "8000 bytes in tensor 'wide', which declares 9216",
    ),
    "a weight of 2^60": (lambda m: m.graph.initializer[1].dims.__setitem__(0, 2**60), "'small' of"),
    "a small weight of other bytes": (
        lambda m: setattr(m.graph.initializer[1], "raw_data", bytes(8)),
        "'small' without the values",
    ),
    "pads of 2^40": (
        lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 2**40),
        "pads 1099511627776",
    ),
    "a stride of zero": (
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 1])),
        "strides 0",
    ),
    "a tensor of 2^40 elements": (add_huge, "ConstantOfShape 'fill' of 1.1e.12 elements"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_the_runtime_the_export_and_the_linter(tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    model = model_of()
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(EngineError, match=message):
            open_runner(path, engine)
    for read in (read_model, check_model):
        with pytest.raises(SourceError, match=message):
            read(path)


def test_a_sound_file_passes_with_its_weights_inside_and_outside(tmp_path: Path) -> None:
    onnx.save(model_of(), tmp_path / "in.onnx")
    onnx.save(model_of(), tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    for name in ("in.onnx", "out.onnx"):
        check_sound(tmp_path / name, error=EngineError)
    assert find_fault(model_of()) is None


def test_a_skeleton_has_everything_but_the_values_of_large_weights(tmp_path: Path) -> None:
    model = model_of()
    onnx.save(model, tmp_path / "m.onnx")
    skeleton = read_skeleton(tmp_path / "m.onnx", error=EngineError)
    wide, small = skeleton.graph.initializer
    assert (list(wide.dims), wide.raw_data) == ([64, 4, 3, 3], b"")
    assert small == model.graph.initializer[1]
    wide.raw_data = model.graph.initializer[0].raw_data
    assert skeleton == model


@pytest.mark.parametrize(
    ("name", "bits"),
    [("FLOAT", 32), ("FLOAT16", 16), ("BFLOAT16", 16), ("INT8", 8), ("INT4", 4), ("BOOL", 8), ("DOUBLE", 64)],
)
def test_an_element_has_the_bits_of_its_type(name: str, bits: int) -> None:
    assert element_bits(TensorProto.DataType.Value(name)) == bits


def test_a_type_without_a_size_has_none() -> None:
    assert element_bits(TensorProto.STRING) == element_bits(TensorProto.UNDEFINED) == element_bits(99) == 0


def test_a_constant_in_another_file_is_no_fault(tmp_path: Path) -> None:
    model = model_of()
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    check_sound(path, error=EngineError)
