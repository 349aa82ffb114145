"""Tests of what the bench recommends, on times that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from accuquant._util.interleave import Times
from accuquant.bench.contender import Contender, Device, LeftOut, Precision, attempt
from accuquant.bench.recommend import Speed, recommend
from accuquant.errors import EngineError


def contender(engine: str, precision: Precision, device: Device = "cpu") -> Contender:
    return Contender(engine, precision, device, lambda: None)


def around(median: float, spread: float = 0.05) -> Times:
    """Return 21 times whose median is `median`."""
    return Times(tuple(median * (1 + spread * np.linspace(-1, 1, 21))))


def answer(**medians: float) -> str:
    """Recommend among CPU contenders with these medians, called like "openvino_int8"."""
    contenders = [contender(*name.split("_")) for name in medians]  # type: ignore[arg-type]
    times = {c.name: around(m) for c, m in zip(contenders, medians.values(), strict=True)}
    return recommend(contenders, times)


def test_int8_that_is_faster_is_recommended_with_its_speed() -> None:
    said = answer(openvino_int8=50, openvino_fp32=125, torch_fp32=200)
    assert said == "Use openvino int8: it is 2.50 times as fast (2.50 to 2.50) as openvino fp32."


def test_the_faster_of_two_formats_is_compared_with_float() -> None:
    said = answer(tensorrt_int8=10, tensorrt_fp8=8, tensorrt_fp16=16)
    assert said.startswith("Use tensorrt fp8: it is 2.00 times as fast")
    said = answer(tensorrt_int8=20, tensorrt_fp8=18, tensorrt_fp16=9)
    assert said.startswith("FP8 is slower than FP16 here: keep tensorrt fp16")


def test_int8_that_is_slower_is_said_to_be() -> None:
    said = answer(tensorrt_int8=12, tensorrt_fp16=10)
    assert said.startswith("INT8 is slower than FP16 here: keep tensorrt fp16, which is 1.20 times as fast")


def test_a_difference_within_the_noise_is_none() -> None:
    rng = np.random.default_rng(0)
    contenders = [contender("a", "int8"), contender("a", "fp32")]
    times = {c.name: Times(tuple(rng.normal(10, 2, 30))) for c in contenders}
    assert recommend(contenders, times).startswith("No clear difference between a int8 and a fp32")


def test_int8_is_compared_on_the_device_that_is_the_fastest() -> None:
    contenders = [
        contender("openvino", "int8"),
        contender("openvino", "fp32"),
        contender("torch", "fp16", "cuda"),
    ]
    times = {"openvino int8": around(50), "openvino fp32": around(100), "torch fp16": around(5)}
    said = recommend(contenders, times)
    assert said == "Use torch fp16: 5.0 ms a call. There is no int8 contender on the GPU to compare it with."


def test_speeds_are_compared_round_by_round() -> None:
    fast, slow = Times((1.0, 10.0, 1.0)), Times((2.0, 20.0, 2.0))
    assert Speed.of(fast, slow) == Speed(2.0, 2.0, 2.0)
    assert Speed.of(slow, fast).is_clear
    assert not Speed(1.1, 0.9, 1.3).is_clear


def test_a_contender_that_cannot_run_is_left_out_with_its_reason() -> None:
    def fails() -> Contender:
        raise EngineError("GPU", got="no NVIDIA driver", expected="one", remedy="Install it")

    def runs_out() -> Contender:
        raise RuntimeError("CUDA out\nof memory")

    assert attempt("tensorrt int8", fails) == LeftOut("tensorrt int8", "no NVIDIA driver. Install it")
    assert attempt("torch fp16", runs_out) == LeftOut("torch fp16", "RuntimeError: CUDA out of memory")
    good = contender("a", "int8")
    assert attempt("a int8", lambda: good) is good


def test_a_failure_that_nobody_expects_is_not_hidden() -> None:
    def broken() -> Contender:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake"):
        attempt("a int8", broken)
