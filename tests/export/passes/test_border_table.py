"""A zero-point in a padded convolution, corrected behind it: exact at every border of every image size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from accuquant.export.passes.border_table import has_border_table

CONSTANT = np.full(3, 0.02, np.float32)


@pytest.mark.parametrize("name", ["conv", "dilated", "grouped", "biasless"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (3, 2), (9, 7)])
def test_the_border_is_that_of_zero_padding_at_every_size(
    one_layer: Any, run_graph: Any, name: str, size: tuple[int, int]
) -> None:
    if name == "dilated" and min(size) < 2:
        size = (size[0] + 1, size[1] + 1)
    network = one_layer(name)
    layer = network.layer(zero_point=-100, activation_scale=CONSTANT)
    (path,) = network.lower(layer)
    sample = np.random.default_rng(0).normal(0.5, 1, (2, 4, *size)).astype(np.float32)
    expected = network.expected(sample, layer, 400)
    np.testing.assert_allclose(run_graph(path, sample, [400]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_stands_between_the_shift_and_the_pair(one_layer: Any, run_graph: Any, fixed: bool) -> None:
    """TensorRT fuses an addition with what computes its input, a padding it does not."""
    network = one_layer("conv")
    if fixed:
        model = onnx.load(network.path)
        for dim, extent in zip(
            model.graph.input[0].type.tensor_type.shape.dim, network.case.input_shape, strict=True
        ):
            dim.dim_value = extent
        onnx.save(model, network.path)
    layer = network.layer(zero_point=-100, activation_scale=CONSTANT)
    (path,) = network.lower(layer)
    nodes = onnx.load(path).graph.node
    producers = {name: node for node in nodes for name in node.output}
    (quantize,) = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert producers[quantize.input[0]].op_type == "Add"
    assert "Pad" not in {node.op_type for node in nodes}
    assert ("Range" in {node.op_type for node in nodes}) is not fixed
    expected = network.expected(network.sample(), layer, 400)
    np.testing.assert_allclose(run_graph(path, network.sample(), [400]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["strided", "conv"])
def test_a_stride_or_a_step_factor_pads_before_the_pair(one_layer: Any, name: str) -> None:
    network = one_layer(name)
    scales = {"activation_scale": CONSTANT} if name == "strided" else {}
    (path,) = network.lower(network.layer(zero_point=-100, **scales))
    assert "Pad" in {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize(
    ("attributes", "has_one"),
    [
        ({"pads": [1, 1, 1, 1]}, True),
        ({"pads": [1, 1, 1, 1], "strides": [1, 1]}, True),
        ({"pads": [0, 0, 0, 1]}, True),
        ({"pads": [1, 1, 1, 1], "strides": [1, 2]}, False),
        ({"pads": [1, 1, 1, 1], "strides": [2, 1]}, False),
        ({"pads": [0, 0, 0, 0]}, False),
        ({}, False),
        ({"auto_pad": "SAME_UPPER", "pads": [1, 1, 1, 1]}, False),
    ],
)
def test_a_padding_and_strides_of_one_written_or_not_have_a_table(
    attributes: dict[str, Any], has_one: bool
) -> None:
    inputs = [ir.Value(name="x"), ir.Value(name="w")]
    assert has_border_table(ir.node("Conv", inputs, attributes)) == has_one
    assert not has_border_table(ir.node("ConvTranspose", inputs, attributes))
