from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from accuquant.errors import EngineError, FloatLayersWarning
from accuquant.graph.calibrated import CalibratedLayer, calibrated_layers, find_calibrated
from accuquant.runtime.executed_nodes import WORK_KINDS, ExecutedNode, ExecutedTensor, onnx_name
from accuquant.runtime.int8_use import Int8Use, LayerRun, int8_use, macs, warn_once
from accuquant.runtime.openvino_runner import OpenVinoRunner

FEEDS = {"x": np.ones((1, 4, 8, 8), np.float32)}
#: 8 x 8 outputs of 4 channels, each from 4 channels and a window of 3 x 3.
MACS = 4 * 8 * 8 * 4 * 3 * 3


def node(kind: str, reads: str, *shapes: tuple[int, ...], name: str = "conv") -> ExecutedNode:
    tensors = [ExecutedTensor(shape, reads if k == 0 else "i8", k > 0) for k, shape in enumerate(shapes)]
    return ExecutedNode(name, kind, "kernel", (name,), tuple(tensors[:-1]), tuple(tensors[-1:]), False)


@pytest.mark.parametrize(
    ("kind", "left", "right", "output", "expected"),
    [
        ("Convolution", (2, 8, 5, 5), (16, 8, 3, 3), (2, 16, 5, 5), 2 * 16 * 25 * 8 * 9),
        ("Convolution", (2, 8, 5, 5), (4, 4, 2, 3, 3), (2, 16, 5, 5), 2 * 16 * 25 * 2 * 9),
        ("Deconvolution", (2, 8, 5, 5), (8, 16, 2, 2), (2, 16, 10, 10), 2 * 8 * 25 * 16 * 4),
        ("FullyConnected", (2, 49, 8), (16, 8), (2, 49, 16), 2 * 49 * 16 * 8),
        ("MatMul", (2, 49, 8), (8, 16), (2, 49, 16), 2 * 49 * 16 * 8),
        ("MatMul", (), (8, 16), (2, 49, 16), 0),
    ],
)
def test_the_work_of_a_node_follows_from_its_shapes(
    kind: str, left: tuple[int, ...], right: tuple[int, ...], output: tuple[int, ...], expected: int
) -> None:
    assert macs(node(kind, "f32", left, right, output)) == expected


def test_a_layer_counts_by_what_it_reads_and_not_by_its_weights() -> None:
    """OpenVINO calls a product int8 whose int8 weights it widens to float."""
    shapes = ((1, 10), (10, 10), (1, 10))
    nodes = [
        node("FullyConnected", "f32", *shapes, name="a"),
        node("FullyConnected", "u8", *shapes, name="b"),
    ]
    use = int8_use([CalibratedLayer(name, f"layer {name}", False) for name in "abc"], nodes)
    assert [run.precision for run in use.runs] == ["fp32", "int8"]
    assert use.share == 0.5
    assert use.unknown == ("layer c",)


def test_no_layer_that_was_found_is_no_share() -> None:
    assert math.isnan(int8_use([CalibratedLayer("a", "a", False)], []).share)
    assert Int8Use(()).describe() == ""


@pytest.mark.parametrize(
    "original",
    [
        "down/conv1",
        "down/conv1/WithoutBiases",
        "down/conv1/DequantizationMultiply",
        "down/conv1/WithoutBiases/DequantizationMultiply",
        "down/conv1/sink_port_0",
    ],
)
def test_the_names_of_split_nodes_lead_back_to_the_graph(original: str) -> None:
    assert onnx_name(original) == "down/conv1"


def test_a_compiled_convolution_is_what_its_kernel_says(make_conv: Callable[..., Path]) -> None:
    with OpenVinoRunner(make_conv(), num_threads=1) as runner:
        assert runner.int8_use is None, "nothing is compiled before the first call"
        runner.infer(FEEDS)
        assert runner.int8_use is not None
        ((run,), unknown) = (runner.int8_use.runs, runner.int8_use.unknown)
    assert (run.layer, run.macs, unknown) == ("conv", MACS, ())
    assert (run.precision == "int8") == run.kernel.lower().endswith("i8")


@pytest.mark.usefixtures("in_float")
def test_layers_in_float_are_told_of_once_a_file(make_conv: Callable[..., Path]) -> None:
    path = make_conv()

    def run() -> None:
        with OpenVinoRunner(path, num_threads=1) as runner:
            runner.infer(FEEDS)
            runner.infer({"x": np.ones((2, 4, 8, 8), np.float32)})
            assert runner.int8_use is not None
            assert runner.int8_use.share == 0.0

    with pytest.warns(FloatLayersWarning) as told:
        run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    (warning,) = told
    text = str(warning.message)
    assert text.startswith(f"'{path}': 1 of 1 calibrated layers, 100% of their work, do not run in int8 on ")
    assert "accuquant audit --engine openvino" in text


@pytest.mark.usefixtures("in_float")
def test_a_file_without_pairs_is_nothing_to_warn_of(tmp_path: Path, save_graph: Callable[..., Path]) -> None:
    weight = np.ones((4, 4, 1, 1), np.float32)
    path = save_graph(
        tmp_path / "float.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        {"w": weight},
        [1, 4, 8, 8],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with OpenVinoRunner(path, num_threads=1) as runner:
            runner.infer(FEEDS)
            assert runner.int8_use is None


def test_several_graphs_count_as_one() -> None:
    full, none = LayerRun("a", 30, "int8", "k"), LayerRun("b", 10, "fp32", "k", zero_point=True)
    use = Int8Use.merged([Int8Use((full,)), Int8Use((none,), ("c",))])
    assert (use.share, use.in_float, use.unknown) == (0.75, (none,), ("c",))
    assert "1 of 2 calibrated layers, 25% of their work" in use.describe()
    assert "export again with --affine shift" in use.describe()


def test_a_layer_that_no_kernel_names_is_told_of_and_never_silent(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    use = Int8Use((LayerRun("a", 30, "int8", "k"),), tuple(f"layer {k}" for k in range(6)))
    assert use.in_float == ()
    with pytest.warns(FloatLayersWarning, match=r"Of 6 calibrated layers it is unknown .*layer 3 and 2 more"):
        warn_once(path, use)
    both = Int8Use((LayerRun("b", 10, "fp32", "k"),), ("c",)).describe()
    assert "1 of 1 calibrated layers, 100% of their work" in both
    assert "no kernel on" in both


def test_a_layer_that_the_engine_renamed_is_unknown_in_the_runner(make_conv: Callable[..., Path]) -> None:
    runner = OpenVinoRunner(make_conv(batch=1), num_threads=1)
    with runner:
        executed = [
            dataclasses.replace(found, onnx_nodes=("renamed",)) if found.kind in WORK_KINDS else found
            for found in runner.executed()
        ]
        layers = calibrated_layers(runner.path, error=EngineError)
    assert int8_use(layers, executed).unknown == ("conv",)


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_a_zero_point_inside_a_pair_is_seen(make_conv: Callable[..., Path]) -> None:
    def shift(model: onnx.ModelProto) -> None:
        (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "zero"]
        zero.CopyFrom(numpy_helper.from_array(np.int8(3), "zero"))

    plain = calibrated_layers(make_conv("a.onnx"), error=EngineError)
    shifted = calibrated_layers(changed(make_conv("b.onnx"), shift), error=EngineError)
    assert plain == (CalibratedLayer("conv", "conv", False, ("y",)),)
    assert shifted == (CalibratedLayer("conv", "conv", True, ("y",)),)


def test_a_zero_point_whose_value_lies_elsewhere_is_not_looked_for(make_conv: Callable[..., Path]) -> None:
    model = onnx.load(make_conv())
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "zero"]
    zero.ClearField("raw_data")
    assert [layer.zero_point for layer in find_calibrated(model)] == [False]


def test_a_layer_with_one_float_operand_is_not_calibrated(make_conv: Callable[..., Path]) -> None:
    def widen(model: onnx.ModelProto) -> None:
        (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
        conv.input[0] = "x"

    assert calibrated_layers(changed(make_conv(), widen), error=EngineError) == ()


def test_a_product_that_goes_by_the_name_of_its_bias_is_found(tmp_path: Path, save_graph: Any) -> None:
    """x -> MatMul -> Add of a constant -> Add of x: the second addition is no part of the layer."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.05),
        "zero": np.int8(0),
        "levels": rng.integers(-63, 64, (8, 8)).astype(np.int8),
        "weight_scale": np.float32(0.01),
        "bias": rng.standard_normal(8).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], "dequantize"),
        helper.make_node("DequantizeLinear", ["levels", "weight_scale", "zero"], ["w"], "weight"),
        helper.make_node("MatMul", ["x_dq", "w"], ["product"], "matmul"),
        helper.make_node("Add", ["product", "bias"], ["sum"], "bias"),
        helper.make_node("Add", ["sum", "x"], ["y"], "residual"),
    ]
    path = save_graph(tmp_path / "product.onnx", nodes, constants, [1, 4, 8])
    (layer,) = calibrated_layers(path, error=EngineError)
    assert layer == CalibratedLayer("matmul", "matmul", False, ("bias",))
    with OpenVinoRunner(path, num_threads=1) as runner:
        assert runner.int8_use is not None
        assert [(run.layer, run.macs) for run in runner.int8_use.runs] == [("matmul", 4 * 8 * 8)]
        assert runner.int8_use.unknown == ()


def test_a_lost_name_is_found_behind_the_layer_alone() -> None:
    shapes = ((1, 10), (10, 10), (1, 10))
    nodes = (node("FullyConnected", "u8", *shapes, name="bias"), node("Subgraph", "f32", *shapes, name="mul"))
    layers = [CalibratedLayer("a", "a", False, ("mul", "bias")), CalibratedLayer("b", "b", False, ("mul",))]
    use = int8_use(layers, nodes)
    assert ([run.layer for run in use.runs], use.unknown) == (["a"], ("b",))


def test_the_profile_counters_stay_off(make_conv: Callable[..., Path]) -> None:
    runner = OpenVinoRunner(make_conv(batch=1), num_threads=1)
    with runner:
        (request,) = runner._requests.values()
        compiled: Any = request.get_compiled_model()
        assert compiled.get_property("PERF_COUNT") in (False, "NO")
