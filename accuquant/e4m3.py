"""The numbers of an 8-bit float: FP8 E4M3, as FLOAT8E4M3FN of ONNX and float8_e4m3fn of torch have them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

#: What the values of a layer are rounded to.
Format = Literal["int8", "fp8"]
FORMATS: tuple[Format, ...] = ("int8", "fp8")
#: The largest number: 1.75 * 2^8. There is no infinity; 0x7F and 0xFF are NaN.
LARGEST = 448.0
#: The smallest number whose mantissa has all three bits. Below it the numbers are multiples of 2^-9.
_SMALLEST_NORMAL = np.float32(2.0**-6)
#: Adding it to a float32 of at most 2^-6 leaves a multiple of 2^-9: that is what its last bit is worth.
_ROUNDER = np.float32(1.5 * 2.0**14)
#: Bits of float32's mantissa that E4M3 has not, and half of their range less one.
_DROPPED, _HALF = np.uint32(20), np.uint32(0x7FFFF)
_FLOAT32_BIAS, _BIAS = 127, 7

Float32 = npt.NDArray[np.float32]


def round_to_e4m3(x: npt.NDArray[Any]) -> Float32:
    """Return `x` [any shape] rounded to the nearest number of E4M3, ties to even, in float32.

    What is beyond 448 becomes 448, infinity too, as QuantizeLinear with saturate = 1 does; NaN stays NaN
    (ONNX, FLOAT8E4M3FN; Micikevicius et al., arXiv 2209.05433, table 1).
    """
    clipped = np.clip(np.asarray(x, np.float32), np.float32(-LARGEST), np.float32(LARGEST))
    bits = np.ascontiguousarray(clipped).view(np.uint32)
    # to nearest, ties to even: a half, less one where the last bit that stays is even, carries upwards
    last = bits >> _DROPPED
    last &= np.uint32(1)
    last += bits
    last += _HALF
    last &= np.uint32(0xFFF00000)
    rounded = last.view(np.float32).reshape(clipped.shape)
    small = np.abs(clipped) < _SMALLEST_NORMAL
    tiny = (clipped + _ROUNDER) - _ROUNDER
    result: Float32 = np.where(small, np.copysign(tiny, clipped), rounded)
    result[np.isnan(clipped)] = np.nan
    return result


def to_bytes(x: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Return the bytes of `x` [any shape], rounded to E4M3: sign, 4 bits of exponent, 3 of mantissa."""
    values = round_to_e4m3(x)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    magnitude = np.abs(values)
    exponent = ((bits >> 23) & 0xFF).astype(np.int16) - (_FLOAT32_BIAS - _BIAS)
    normal = (exponent << 3) | ((bits >> _DROPPED) & 7).astype(np.int16)
    subnormal = np.nan_to_num(magnitude * np.float32(2.0**9)).astype(np.int16)
    code = np.where(magnitude < _SMALLEST_NORMAL, subnormal, normal)
    code = np.where(np.isnan(values), 0x7F, code) | np.where(np.signbit(values), 0x80, 0)
    return code.astype(np.uint8).view(np.int8)


def from_bytes(levels: npt.NDArray[np.int8]) -> Float32:
    """Return the numbers that bytes [any shape] stand for."""
    values: Float32 = _NUMBERS[np.asarray(levels).view(np.uint8)]
    return values


def places(x: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return which number of E4M3 each of `x` [any shape] is, counted from zero: -126 to 126."""
    code = to_bytes(x).view(np.uint8).astype(np.int16)
    places: npt.NDArray[np.int16] = np.where(code & 0x80, -(code & 0x7F), code)
    return places


def _numbers() -> Float32:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(float) - _BIAS - 3)
    )
    magnitude[(exponent == 15) & (mantissa == 7)] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


_NUMBERS = _numbers()
