"""E4M3 in numpy against ml_dtypes, and against onnx's own reference of QuantizeLinear."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from accuquant.e4m3 import from_bytes, places, round_to_e4m3, to_bytes

CODES = np.arange(256, dtype=np.uint8)
NUMBERS = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def values() -> npt.NDArray[np.float32]:
    """Every number, every tie and its two neighbours in float32, and random values of all sizes."""
    finite = np.unique(NUMBERS[np.isfinite(NUMBERS)])
    ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    above, below = (np.nextafter(ties, np.float32(end)) for end in (np.inf, -np.inf))
    rng = np.random.default_rng(0)
    random = rng.normal(size=20_000) * np.exp(rng.uniform(-20, 7, 20_000))
    edges = [448, 463.9, 464, 480, 1e9, 2**-10, 2**-10 * 1.0001, 1e-30, 0.0, -0.0]
    return np.concatenate([finite, ties, above, below, random, edges]).astype(np.float32)


def test_rounds_to_the_nearest_number_and_ties_to_even() -> None:
    x = np.concatenate([values(), -values()])
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(round_to_e4m3(x), expected.astype(np.float32))
    np.testing.assert_array_equal(to_bytes(x).view(np.uint8), expected.view(np.uint8))


def test_rounds_as_onnx_defines_quantize_linear() -> None:
    x = values()
    x = x[np.abs(x) <= 448]  # beyond, onnx's reference makes NaN of some values although it saturates
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    one = helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [one, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    results: Any = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(round_to_e4m3(x), results[0])


def test_what_is_too_large_is_448_and_nan_stays_nan() -> None:
    rounded = round_to_e4m3(np.array([np.inf, -np.inf, 1e30, np.nan, -0.0]))
    np.testing.assert_array_equal(rounded, [448, -448, 448, np.nan, 0])
    assert np.signbit(rounded[4])


def test_bytes_are_those_of_the_format() -> None:
    np.testing.assert_array_equal(from_bytes(CODES.view(np.int8)), NUMBERS)
    np.testing.assert_array_equal(to_bytes(NUMBERS)[:127].view(np.uint8), CODES[:127])


def test_keeps_the_shape_and_the_argument() -> None:
    x = np.full((2, 3, 1), 0.3, np.float64)
    assert round_to_e4m3(x).shape == to_bytes(x).shape == (2, 3, 1)
    assert round_to_e4m3(np.array(3.3)) == pytest.approx(3.25)
    np.testing.assert_array_equal(x, 0.3)


def test_places_count_the_numbers_from_zero() -> None:
    finite = np.unique(NUMBERS[np.isfinite(NUMBERS)])  # -448 ... 448, zero once
    np.testing.assert_array_equal(places(finite), np.arange(-126, 127))
