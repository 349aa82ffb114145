"""The shared quantizer and the validation of a layer's qparams."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from accuquant.errors import RecipeError
from accuquant.qparams import LayerQParams, along_axis, fingerprint, level_bounds, quantize


def qparams(**changes: Any) -> LayerQParams:
    fields: dict[str, Any] = {
        "name": "conv",
        "kind": "conv2d",
        "weight_shape": (4, 3, 1, 1),
        "fingerprint": "0" * 64,
        "weight_scale": np.full(4, 0.1, np.float32),
        "activation_scale": np.array([0.1, 0.2], np.float32),
    }
    return LayerQParams(**(fields | changes))


@pytest.mark.parametrize(("bits", "bounds"), [(8, (-128, 127)), (4, (-8, 7)), (2, (-2, 1))])
def test_level_bounds_are_those_of_a_signed_integer(bits: int, bounds: tuple[int, int]) -> None:
    assert level_bounds(bits) == bounds


@pytest.mark.parametrize("bits", [1, 9, 0, -8, 16])
def test_rejects_other_bits(bits: int) -> None:
    with pytest.raises(RecipeError, match=r"an integer from 2 to 8"):
        level_bounds(bits)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("where", ["middle", "bottom", "top"])
def test_quantize_is_a_rounded_clamped_loop(bits: int, where: str) -> None:
    qmin, qmax = level_bounds(bits)
    zero_point = {"middle": 0, "bottom": qmin, "top": qmax}[where]
    x = np.random.default_rng(bits).normal(0, 3, 500).astype(np.float32)
    scale = np.float32(0.037 * 2 ** (8 - bits))
    expected = [min(max(round(float(v / scale)) + zero_point, qmin), qmax) for v in x]
    levels = quantize(x, scale, bits, zero_point=zero_point)
    assert levels.dtype == np.int8
    assert levels.tolist() == expected


def test_quantize_rounds_half_to_even() -> None:
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert quantize(ties * 0.25, 0.25).tolist() == [-2, -2, 0, 0, 2, 2]


def test_quantize_divides_by_the_scale() -> None:
    # 1 / s is rounded too: a product with it lands on other levels
    scale = np.float32(0.023)
    x = ((np.arange(-120, 120) + 0.5) * np.float64(scale)).astype(np.float32)
    by_division = np.rint(x / scale)
    assert np.any(by_division != np.rint(x * (np.float32(1) / scale)))
    assert np.array_equal(quantize(x, scale), by_division)


def test_a_scale_broadcasts_along_the_axis() -> None:
    scale = np.array([1, 2, 4], np.float32)
    assert along_axis(scale, 4, 1).shape == (1, 3, 1, 1)
    levels = quantize(np.full((2, 3, 1, 1), 8, np.float32), along_axis(scale, 4, 1))
    assert levels[1, :, 0, 0].tolist() == [8, 4, 2]


def test_a_fingerprint_survives_half_precision_and_memory_order() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = fingerprint(weight)
    assert fingerprint(weight.astype(np.float16)) == expected
    assert fingerprint(weight.astype(np.float16).astype(np.float64)) == expected
    assert fingerprint(np.asfortranarray(weight)) == expected


def test_a_fingerprint_tells_values_and_shapes_apart() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    other = weight.copy()
    other[3, 4] += 0.01
    assert len({fingerprint(w) for w in (weight, other, weight.reshape(5, 4), weight.T)}) == 4


def test_a_fingerprint_of_values_beyond_half_precision_does_not_warn() -> None:
    assert fingerprint(np.array([1e9], np.float32)) == fingerprint(np.array([np.inf], np.float32))


@pytest.mark.parametrize(("kind", "axis"), [("conv2d", 0), ("linear", 0), ("conv_transpose2d", 1)])
def test_the_axis_counts_output_channels(kind: str, axis: int) -> None:
    shape = (4, 4, 1, 1)
    assert qparams(kind=kind, weight_shape=shape).axis == axis


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "conv3d"}, "layer 'conv': got layer kind 'conv3d', expected one of conv2d"),
    ({"weight_bits": 9}, "an integer from 2 to 8"),
    ({"activation_bits": 1}, "an integer from 2 to 8"),
    ({"zero_point": 128}, r"zero_point 128, expected an integer in \[-128, 127\]"),
    ({"zero_point": -9, "activation_bits": 4}, r"zero_point -9, expected an integer in \[-8, 7\]"),
    (
        {"weight_scale": np.full(3, 0.1, np.float32)},
        r"weight scale of shape \(3,\), expected \(4,\) for axis 0",
    ),
    ({"weight_scale": np.full((4, 1), 0.1, np.float32)}, r"weight scale of shape \(4, 1\)"),
    ({"activation_scale": np.zeros((0,), np.float32)}, "one value for each step group"),
    ({"activation_scale": np.float32(0.1)}, "one value for each step group"),
    ({"activation_scale": np.array([0.1, 0.0], np.float32)}, r"activation scale\[1\] = 0.0"),
    ({"activation_scale": np.array([-0.1, 0.1], np.float32)}, r"activation scale\[0\] = -0.1"),
    ({"weight_scale": np.array([1, 1, np.nan, 1], np.float32)}, r"weight scale\[2\] = nan"),
    ({"weight_scale": np.array([1, 1, 1, np.inf], np.float32)}, r"weight scale\[3\] = inf"),
    ({"weight_levels": np.zeros((4, 3, 1, 1), np.int32)}, "weight levels of type int32"),
    (
        {"weight_levels": np.zeros((3, 4, 1, 1), np.int8)},
        r"weight levels of type int8 and shape \(3, 4, 1, 1\)",
    ),
    (
        {"weight_levels": np.full((4, 3, 1, 1), 8, np.int8), "weight_bits": 4},
        r"levels in \[-8, 7\] for 4-bit",
    ),
    ({"weight_levels": np.full((4, 3, 1, 1), -9, np.int8), "weight_bits": 4}, "weight levels from -9 to -9"),
    ({"bias_correction": np.zeros(3, np.float32)}, r"a bias correction of shape \(3,\), expected \(4,\)"),
    ({"bias_correction": np.zeros(8, np.float32)}, r"a bias correction of shape \(8,\), expected \(4,\)"),
    ({"bias_correction": np.array([0, 0, 0, np.nan], np.float32)}, r"expected \(4,\) finite values"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_rejects_damaged_qparams(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        qparams(**changes)


@pytest.mark.parametrize("zero_point", [-128, 127])
def test_a_zero_point_may_be_on_a_bound(zero_point: int) -> None:
    assert qparams(zero_point=zero_point).zero_point == zero_point


def test_what_is_not_given_is_the_symmetric_eight_bit_quantizer() -> None:
    layer = qparams()
    assert (layer.weight_bits, layer.activation_bits, layer.zero_point) == (8, 8, 0)


def test_qparams_stay_as_they_were_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        qparams().zero_point = 300  # type: ignore[misc]  # what the test is about


def test_a_transposed_convolution_without_groups_has_a_bias_an_output() -> None:
    fields: dict[str, Any] = {"kind": "conv_transpose2d", "weight_shape": (4, 3, 1, 1)}
    layer = qparams(**fields, weight_scale=np.ones(3, np.float32), bias_correction=np.ones(3, np.float32))
    assert layer.bias_correction is not None
    assert len(layer.bias_correction) == 3


def test_groups_of_a_transposed_convolution_have_biases_of_their_own() -> None:
    shape, scale = (4, 3, 1, 1), np.ones(3, np.float32)
    fields: dict[str, Any] = {"kind": "conv_transpose2d", "weight_shape": shape, "weight_scale": scale}
    layer = qparams(**fields, bias_correction=np.zeros(6, np.float32))
    assert layer.bias_correction is not None
    assert len(layer.bias_correction) == 2 * len(layer.weight_scale)
    for count in (0, 4):
        with pytest.raises(RecipeError, match=rf"bias correction of shape \({count},\)"):
            qparams(**fields, bias_correction=np.zeros(count, np.float32))


def test_weights_are_rounded_to_nearest_on_their_own_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    levels = qparams(weight_scale=scale, weight_bits=4).quantized_weight(weight)
    for channel in range(4):
        expected = [min(max(round(float(w / scale[channel])), -8), 7) for w in weight[channel].ravel()]
        assert levels[channel].ravel().tolist() == expected


def test_learned_levels_win_over_rounding() -> None:
    learned = np.random.default_rng(1).integers(-8, 8, (4, 3, 1, 1)).astype(np.int8)
    layer = qparams(weight_bits=4, weight_levels=learned)
    assert np.array_equal(layer.quantized_weight(np.zeros((4, 3, 1, 1), np.float32)), learned)


def test_rejects_a_weight_of_another_shape() -> None:
    with pytest.raises(RecipeError, match=r"calibrated from another checkpoint"):
        qparams().quantized_weight(np.zeros((4, 3, 3, 3), np.float32))


def test_knows_whether_step_groups_differ() -> None:
    assert qparams().is_grouped
    assert qparams(activation_scale=np.array([0.1, 0.1, 0.2], np.float32)).is_grouped
    for count in (1, 3):
        assert not qparams(activation_scale=np.full(count, 0.1, np.float32)).is_grouped


def test_replacing_the_scales_validates_them() -> None:
    layer = qparams().with_activation_scale(np.array([0.5, 0.25]))
    assert layer.activation_scale.dtype == np.float32
    assert layer.activation_scale.tolist() == [0.5, 0.25]
    with pytest.raises(RecipeError, match=r"above 0"):
        qparams().with_activation_scale(np.array([0.5, -1.0]))
