"""In half precision a convolution's weight has one scale, and its channels' factors stand behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from accuquant.export.passes.quantize_weights import shared_scale

#: A channel whose weights are all zero, among live ones.
DEAD = np.array([1, 1, 0, 1, 1, 1])


def test_the_shared_scale_is_a_power_of_two_below_every_channel_that_counts() -> None:
    scales = np.array([0.011, 0.02, 0.03, 0.3, 1e-7, 0.5], np.float32)
    live = np.ones(6, bool)
    assert shared_scale(scales, live) == 2.0**-7  # 0.5 / 64: a channel next to zero does not pull it down
    live[5] = False
    assert shared_scale(scales, live) == 2.0**-8  # 0.3 / 64
    assert shared_scale(scales, np.zeros(6, bool)) == 1


@pytest.mark.parametrize("scale_of_zeros", [1.0, 1e30, 1e-30])
def test_a_channel_of_zeros_does_not_make_the_others_infinite(
    one_layer: Any, run_graph: Any, scale_of_zeros: float
) -> None:
    """Recipes hold the scale 1 for such a channel; outputs were 200 times as large before their factor."""
    network = one_layer("conv", gain=0.01 * DEAD)
    scale = (np.abs(network.weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    scale[2] = scale_of_zeros
    layer = network.layer(weight_scale=scale, activation_scale=np.full(3, 186, np.float32))
    sample = network.sample() * 6000
    expected = network.expected(sample, layer, 999)
    assert np.abs(expected).max() > 300
    result = run_graph(network.lower(layer, precision="fp16")[0], sample, [999])
    assert np.abs(result - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["conv", "transposed", "gemm", "gemm-in-out", "matmul"])
def test_a_scale_that_half_precision_cannot_hold_keeps_the_weights_size(
    one_layer: Any, run_graph: Any, name: str
) -> None:
    """Scales down to 2^-27, where float16 ends at 2^-24: the levels are those of the scale in the graph."""
    network = one_layer(name, gain=1e-6)
    layer = network.layer(activation_scale=np.full(3, 186, np.float32))
    assert layer.weight_scale.max() < 2.0**-24
    sample = network.sample() * 6000
    bias = 0 if network.bias is None else network.bias
    broadcast = np.reshape(bias, (-1, 1, 1)) if sample.ndim == 4 else bias
    wanted = network.expected(sample, layer, 999) - broadcast
    found = run_graph(network.lower(layer, precision="fp16")[0], sample, [999]) - broadcast
    # the step of float16 between two weights, on each of the products
    products = network.weight.size // network.case.outputs if name != "transposed" else 16
    assert np.abs(found - wanted).max() < 2.0**-25 * products * np.abs(sample).max() + 2e-3
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    assert np.linalg.norm(found) < 1.2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("size", [2.0**-9, 0.0031, 0.3, 1.0, 40.0])
def test_the_shared_scale_follows_the_weight(size: float) -> None:
    scales = np.float32(size) * np.array([1, 1.5, 2.5, 5, 20, 60], np.float32)
    shared = shared_scale(scales, np.ones(6, bool))
    assert np.log2(shared) % 1 == 0
    assert scales.min() / 2 < shared <= scales.min(), "the next power of two below the smallest"


def test_a_channel_next_to_zero_counts_as_a_64th_of_the_largest() -> None:
    for smallest, expected in ((1.0, 1.0), (0.9, 0.5), (0.5, 0.5), (0.4, 0.5), (1e-6, 0.5)):
        scales = np.array([smallest, 7, 7, 7, 7, 32], np.float32)  # 32 / 64 is the least that counts
        assert shared_scale(scales, np.ones(6, bool)) == expected


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
