"""In half precision a convolution's weight has one scale, and its channels' factors stand behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from accuquant.export.passes.quantize_weights import channel_factors, shared_scale


def test_the_shared_scale_is_a_power_of_two_below_every_channel_but_dead_ones(one_layer: Any) -> None:
    layer = one_layer("conv").layer(weight_scale=np.array([0.011, 0.02, 0.03, 0.3, 1e-7, 0.5], np.float32))
    assert shared_scale(layer) == 2.0**-7  # 0.5 / 64: the dead channel does not pull it down
    factors = channel_factors(layer)
    np.testing.assert_array_equal(factors * np.float32(2.0**-7), layer.weight_scale)
    assert factors.max() == 64


@pytest.mark.parametrize("size", [2.0**-9, 0.0031, 0.3, 1.0, 40.0])
def test_the_shared_scale_follows_the_weight(one_layer: Any, size: float) -> None:
    scales = np.float32(size) * np.array([1, 1.5, 2.5, 5, 20, 60], np.float32)
    layer = one_layer("conv").layer(weight_scale=scales)
    shared = shared_scale(layer)
    assert np.log2(shared) % 1 == 0
    assert scales.min() / 2 < shared <= scales.min(), "the next power of two below the smallest"
    np.testing.assert_array_equal(channel_factors(layer), scales / np.float32(shared))
    assert channel_factors(layer).min() >= 1


def test_a_channel_next_to_zero_counts_as_a_64th_of_the_largest(one_layer: Any) -> None:
    for smallest, expected in ((1.0, 1.0), (0.9, 0.5), (0.5, 0.5), (0.4, 0.5), (1e-6, 0.5)):
        scales = np.array([smallest, 7, 7, 7, 7, 32], np.float32)  # 32 / 64 is the least that counts
        assert shared_scale(one_layer("conv").layer(weight_scale=scales)) == expected


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_the_channels_are_told_apart_behind_the_convolution(
    one_layer: Any, run_graph: Any, lowering: str, zero_point: int
) -> None:
    network = one_layer("conv")
    scales = np.array([0.002, 0.004, 0.008, 0.016, 0.03, 0.06], np.float32)
    layer = network.layer(zero_point=zero_point, weight_scale=scales)
    path = network.lower(layer, lowering, precision="fp16")[0]
    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (weight,) = [n for n in model.graph.node if n.name == "block.layer/weight/DequantizeLinear"]
    assert tensors[weight.input[1]].shape == ()
    assert tensors["block.layer/output/channels"].shape == (1, 6, 1, 1)
    expected = network.expected(network.sample(), layer, 999)
    # half precision against float64; one activation in a hundred thousand may round the other way
    np.testing.assert_allclose(run_graph(path, network.sample(), [999]), expected, rtol=1e-2, atol=0.05)


def test_single_precision_keeps_a_scale_a_channel(one_layer: Any) -> None:
    network = one_layer("conv")
    path = network.lower(network.layer(), precision="fp32")[0]
    tensors = {t.name: t for t in onnx.load(path).graph.initializer}
    assert list(tensors["block.layer/weight/scale"].dims) == [6]
