"""Every kind of layer, lowered both ways, computes what the quantizer's definition says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

SPATIAL = ["conv", "strided", "dilated", "same", "grouped", "pointwise", "biasless", "transposed"]
LAYERS = [*SPATIAL, "transposed-groups", "gemm", "gemm-in-out", "matmul", "matmul-biasless"]
TIMESTEPS = (999, 400, 3)
TOP_EDGE = 1000


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("name", LAYERS)
def test_one_graph_follows_the_recipe_in_every_step_group(
    one_layer: Any, run_graph: Any, name: str, zero_point: int
) -> None:
    network = one_layer(name)
    layer = network.layer(zero_point=zero_point)
    (path,) = network.lower(layer)
    for timestep in TIMESTEPS:
        result = run_graph(path, network.sample(), [timestep])
        expected = network.expected(network.sample(), layer, timestep)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("name", LAYERS)
def test_one_graph_a_group_follows_the_recipe(
    one_layer: Any, run_graph: Any, name: str, zero_point: int
) -> None:
    network = one_layer(name)
    layer = network.layer(zero_point=zero_point)
    paths = network.lower(layer, "per-group")
    assert len(paths) == 3
    for path, timestep in zip(paths, TIMESTEPS, strict=True):
        result = run_graph(path, network.sample(), [timestep])
        expected = network.expected(network.sample(), layer, timestep)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


def test_the_top_edge_is_in_the_first_group_of_the_graph_too(
    one_layer: Any, run_graph: Any, recipe_of: Any
) -> None:
    network = one_layer("conv")
    groups = recipe_of(network.layer()).groups
    (path,) = network.lower(network.layer())
    assert (groups.edges[0], groups.find(TOP_EDGE)) == (TOP_EDGE, 0)
    at_the_edge, below = (run_graph(path, network.sample(), [t]) for t in (TOP_EDGE, 999))
    np.testing.assert_array_equal(at_the_edge, below)
    assert not np.array_equal(below, run_graph(path, network.sample(), [400]))


@pytest.mark.parametrize("name", ["conv", "transposed", "matmul"])
def test_a_symmetric_rescale_rounds_exactly_as_the_constant_scale_does(
    one_layer: Any, run_graph: Any, name: str
) -> None:
    network = one_layer(name)
    layer = network.layer()
    (one,) = network.lower(layer)
    each = network.lower(layer, "per-group")
    sample = network.sample()
    for path, timestep in zip(each, TIMESTEPS, strict=True):
        levels_one = run_to_levels(run_graph, one, sample, timestep)
        levels_each = run_to_levels(run_graph, path, sample, timestep)
        np.testing.assert_array_equal(levels_one, levels_each)


def run_to_levels(run_graph: Any, path: Any, sample: Any, timestep: float) -> Any:
    """The int8 levels of the only QDQ pair, which becomes the graph's output."""
    model = onnx.load(path)
    (quantize,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(quantize.output[0], TensorProto.INT8, None))
    inspected = path.with_name("levels.onnx")
    onnx.save(model, inspected)
    return run_graph(inspected, sample, [timestep])


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("zero_point", [0, -5])
@pytest.mark.parametrize("bits", [4, 6])
def test_narrow_activations_clip_to_their_own_grid(
    one_layer: Any, run_graph: Any, bits: int, zero_point: int, lowering: str
) -> None:
    network = one_layer("conv")
    scales = np.array([0.3, 0.2, 0.1], np.float32) * 2 ** (5 - bits)
    layer = network.layer(activation_bits=bits, zero_point=zero_point, activation_scale=scales)
    path = network.lower(layer, lowering)[0]
    sample = 3 * network.sample()
    clipped = network.expected(sample, layer, 999)
    wide = network.expected(sample, network.layer(zero_point=zero_point, activation_scale=scales), 999)
    assert np.abs(clipped - wide).max() > 0.1
    np.testing.assert_allclose(run_graph(path, sample, [999]), clipped, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_narrow_weights_lie_on_the_int8_grid(one_layer: Any, run_graph: Any, bits: int) -> None:
    network = one_layer("conv")
    layer = network.layer(weight_bits=bits)
    (path,) = network.lower(layer)
    (levels,) = [t for t in onnx.load(path).graph.initializer if t.name.endswith("/levels")]
    values = onnx.numpy_helper.to_array(levels)
    assert values.dtype == np.int8
    assert values.min() >= -(2 ** (bits - 1))
    assert values.max() <= 2 ** (bits - 1) - 1
    expected = network.expected(network.sample(), layer, 3)
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)


def test_learned_rounding_and_bias_correction_reach_the_graph(one_layer: Any, run_graph: Any) -> None:
    for name in ("conv", "biasless", "transposed", "gemm-in-out", "matmul", "matmul-biasless"):
        network = one_layer(name)
        rng = np.random.default_rng(1)
        layer = network.layer(
            zero_point=-30,
            weight_levels=rng.integers(-128, 128, network.weight.shape).astype(np.int8),
            bias_correction=rng.normal(size=network.case.outputs).astype(np.float32),
        )
        (path,) = network.lower(layer)
        expected = network.expected(network.sample(), layer, 400)
        np.testing.assert_allclose(run_graph(path, network.sample(), [400]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", ["conv", "transposed", "matmul"])
def test_a_native_zero_point_computes_the_same(
    one_layer: Any, run_graph: Any, name: str, lowering: str
) -> None:
    network = one_layer(name)
    layer = network.layer(zero_point=-100, activation_bits=8)
    path = network.lower(layer, lowering, affine="zero_point")[0]
    assert sorted(zero_points(path)) == [-100]
    expected = network.expected(network.sample(), layer, 999)
    np.testing.assert_allclose(run_graph(path, network.sample(), [999]), expected, rtol=1e-4, atol=2e-5)


def zero_points(path: Any) -> set[int]:
    model = onnx.load(path)
    values = {t.name: t for t in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {int(onnx.numpy_helper.to_array(values[node.input[2]])) for node in pairs}


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("name", ["conv", "same", "transposed", "gemm", "matmul"])
def test_half_precision_stays_within_one_level(
    one_layer: Any, run_graph: Any, name: str, zero_point: int
) -> None:
    network = one_layer(name)
    layer = network.layer(zero_point=zero_point)
    for lowering in ("rescale", "per-group"):
        path = network.lower(layer, lowering, precision="fp16")[0]
        model = onnx.load(path)
        assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT}
        floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
        assert [t.name for t in floats if "step_group" not in t.name] == []
        result = run_graph(path, network.sample(), [999])
        expected = network.expected(network.sample(), layer, 999)
        one_level = float(layer.activation_scale[0]) * np.abs(network.weight).max() * 3
        np.testing.assert_allclose(result, expected, rtol=5e-3, atol=one_level)


@pytest.mark.parametrize(
    ("kind", "shape", "values"),
    [
        (TensorProto.INT64, [], [999, 500, 100, 99, 0]),
        (TensorProto.INT64, ["steps"], [[999], [501, 3], [500, 999], [99, 7]]),
        (TensorProto.FLOAT, [], [999.0, 500.5, 500.4, 100.0, 99.9]),
        (TensorProto.FLOAT, ["steps"], [[999.0], [500.4, 999.0]]),
    ],
)
def test_the_first_timestep_chooses_the_group(
    one_layer: Any, run_graph: Any, kind: int, shape: list[Any], values: list[Any]
) -> None:
    network = one_layer("pointwise", timestep=(kind, shape))
    layer = network.layer()
    (path,) = network.lower(layer)
    dtype = np.int64 if kind == TensorProto.INT64 else np.float32
    for value in values:
        timestep = np.asarray(value, dtype)
        expected = network.expected(network.sample(), layer, float(timestep.flat[0]))
        result = run_graph(path, network.sample(), timestep)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


def test_a_scale_that_never_changes_needs_no_rescale(one_layer: Any, run_graph: Any) -> None:
    network = one_layer("conv")
    layer = network.layer(activation_scale=np.full(3, 0.02, np.float32))
    (path,) = network.lower(layer)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "Conv"]
    expected = network.expected(network.sample(), layer, 3)
    np.testing.assert_allclose(run_graph(path, network.sample(), [3]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["conv", "transposed", "gemm", "matmul"])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_activation_scales_are_scalars(one_layer: Any, name: str, lowering: str) -> None:
    """TensorRT runs a convolution in float where the scale of its input is [1] instead of []."""
    network = one_layer(name)
    for zero_point in (0, -100):
        path = network.lower(network.layer(zero_point=zero_point), lowering)[0]
        model = onnx.load(path)
        values = {t.name: t for t in model.graph.initializer}
        (quantize,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert list(values[quantize.input[1]].dims) == []
        assert list(values[quantize.input[2]].dims) == []


def test_a_half_scale_that_vanishes_is_refused(one_layer: Any) -> None:
    network = one_layer("conv")
    layer = network.layer(activation_scale=np.full(3, 1e-9, np.float32))
    with pytest.raises(Exception, match=r"block\.layer.*activation scale that is 0\.0 in float16"):
        network.lower(layer, precision="fp16")


@pytest.mark.parametrize("name", LAYERS)
def test_exports_break_no_rule_of_tensorrt(one_layer: Any, name: str) -> None:
    from accuquant.export import check_model

    network = one_layer(name)
    layer = network.layer(zero_point=-100)
    for precision in ("fp32", "fp16"):
        for lowering in ("rescale", "per-group"):
            for path in network.lower(layer, lowering, precision=precision):
                assert check_model(path) == []


def test_static_shapes_survive_the_optimizer_of_onnxruntime(
    one_layer: Any, run_graph: Callable[..., Any]
) -> None:
    """It fused MatMul and bias, moved the QDQ pair, and rejected the result (its issue 25526)."""
    network = one_layer("matmul")
    model = onnx.load(network.path)
    for value, shape in ((model.graph.input[0], (2, 3, 5)), (model.graph.output[0], (2, 3, 6))):
        for extent, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            extent.dim_value = size
    onnx.save(model, network.path)
    layer = network.layer(activation_scale=np.full(3, 0.02, np.float32))
    (path,) = network.lower(layer)
    expected = network.expected(network.sample(), layer, 3)
    result = run_graph(path, network.sample(), [3], optimized=True)
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"zero_point": -100}])
@pytest.mark.parametrize("scales", [(0.031, 0.017, 0.011), (0.02, 0.02, 0.02)])
def test_a_product_of_two_axes_keeps_two(
    one_layer: Any, run_graph: Any, scales: tuple[float, ...], changes: dict[str, int]
) -> None:
    network = one_layer("matmul")
    model = onnx.load(network.path)
    for value in (*model.graph.input[:1], *model.graph.output):
        del value.type.tensor_type.shape.dim[0]
    onnx.save(model, network.path)
    layer = network.layer(activation_scale=np.array(scales, np.float32), **changes)
    (path,) = network.lower(layer)
    sample = network.sample()[0]
    result = run_graph(path, sample, [400], optimized=True)
    np.testing.assert_allclose(result, network.expected(sample, layer, 400), rtol=1e-4, atol=1e-4)
