"""The quantizer that every stage shares: symmetric weights, per-tensor activations, int8 or FP8 levels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.e4m3 import FORMATS, Format, from_bytes, round_to_e4m3, to_bytes
from accuquant.errors import RecipeError

FloatArray = npt.NDArray[np.floating[Any]]

#: Layer kind -> the axis of its weight that counts output channels, which weight scales keep.
WEIGHT_AXIS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1}


def level_bounds(bits: int) -> tuple[int, int]:
    """Return (qmin, qmax) of a signed grid: 8 bits -> (-128, 127), 4 bits -> (-8, 7)."""
    if not 2 <= bits <= 8:
        raise RecipeError(
            "bits",
            got=str(bits),
            expected="an integer from 2 to 8",
            remedy="Calibrate again with --weight-bits and --activation-bits in that range",
        )
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize(
    x: FloatArray, scale: FloatArray | float, bits: int = 8, *, zero_point: int = 0
) -> npt.NDArray[np.int8]:
    """Return clamp(round_half_even(x / scale) + zero_point, qmin, qmax) as int8, like QuantizeLinear.

    `scale` broadcasts against `x`. Divides by the scale (multiplying by 1 / scale rounds otherwise).
    """
    qmin, qmax = level_bounds(bits)
    # in place: the levels of the largest layers come from 0.1 GB
    levels = np.asarray(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
    np.rint(levels, out=levels)
    levels += zero_point
    clipped: npt.NDArray[np.int8] = np.clip(levels, qmin, qmax, out=levels).astype(np.int8)
    return clipped


def along_axis(scale: FloatArray, ndim: int, axis: int) -> FloatArray:
    """Reshape `scale` [O] to broadcast along `axis` of an array with `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)


def fingerprint(weight: FloatArray) -> str:
    """Return a SHA-256 that names a weight by content, the same for its fp32 and its fp16 copy.

    The bytes hashed are the shape and the values rounded to float16.
    """
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(np.asarray(weight, np.float16))
    digest = hashlib.sha256(repr(half.shape).encode())
    digest.update(half.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class LayerQParams:
    """How one layer is quantized: one weight, its input activation, G step groups.

    `weight_scale` [O] runs along `axis` of the weight (`weight_shape`). `activation_scale` [G] has one
    scale for each step group; `zero_point` is shared by all of them. With zero_point = z the input
    x becomes (clamp(round(x / s) + z, qmin, qmax) - z) * s: z = 0 is the symmetric quantizer that
    TensorRT runs as it is, any other z is lowered to a constant shift before a symmetric one.
    `weight_levels` (int8, `weight_shape`) is set where the rounding was learned; None means
    round-to-nearest of weight / weight_scale. `bias_correction` [O] is added to the layer's bias (to zeros
    where it has none) and cancels the mean error of the rounding. The groups of a transposed convolution
    share their weight scales, but not their biases. Axes: WEIGHT_AXIS.

    `format` "fp8": weight and activation are rounded to the numbers of E4M3 in place of integers, which
    reach from -448 to 448; `weight_levels` are their bytes, bits are 8, and there is no zero-point.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    fingerprint: str
    weight_scale: npt.NDArray[np.float32]
    activation_scale: npt.NDArray[np.float32]
    weight_bits: int = 8
    activation_bits: int = 8
    zero_point: int = 0
    weight_levels: npt.NDArray[np.int8] | None = None
    bias_correction: npt.NDArray[np.float32] | None = None
    format: Format = "int8"

    def __post_init__(self) -> None:
        if self.kind not in WEIGHT_AXIS:
            raise self._error(
                f"layer kind {self.kind!r}",
                f"one of {', '.join(WEIGHT_AXIS)}",
                "The file was written by another version of AccuQuant, or is damaged",
            )
        level_bounds(self.weight_bits)
        qmin, qmax = level_bounds(self.activation_bits)
        self._check_format()
        if not qmin <= self.zero_point <= qmax:
            raise self._error(
                f"zero_point {self.zero_point}",
                f"an integer in [{qmin}, {qmax}] for {self.activation_bits}-bit activations",
                "Run `accuquant calibrate` again",
            )
        self._check_scale("weight scale", self.weight_scale, self.weight_shape[self.axis])
        self._check_scale("activation scale", self.activation_scale, None)
        self._check_levels()
        self._check_bias()

    @property
    def axis(self) -> int:
        """The axis of the weight that `weight_scale` runs along."""
        return WEIGHT_AXIS[self.kind]

    @property
    def is_grouped(self) -> bool:
        """Whether the activation scale differs between step groups."""
        return bool(np.any(self.activation_scale != self.activation_scale[0]))

    @property
    def activation_key(self) -> tuple[object, ...]:
        """What layers have in common that share one activation quantizer (to_q, to_k and to_v do)."""
        return (self.activation_scale.tobytes(), self.zero_point, self.activation_bits, self.format)

    def quantized_weight(self, weight: FloatArray) -> npt.NDArray[np.int8]:
        """Return the int8 levels of `weight` [*weight_shape]: learned ones, else round-to-nearest.

        Of the format "fp8" they are bytes: `level_values` gives the numbers.
        """
        if tuple(weight.shape) != self.weight_shape:
            raise self._error(
                f"a weight of shape {tuple(weight.shape)}",
                f"{self.weight_shape}",
                "The recipe was calibrated from another checkpoint; run `accuquant calibrate` again",
            )
        if self.weight_levels is not None:
            return self.weight_levels
        scale = along_axis(self.weight_scale, weight.ndim, self.axis)
        if self.format == "fp8":
            return to_bytes(np.asarray(weight, np.float32) / scale)
        return quantize(weight, scale, self.weight_bits)

    def nearest_levels(self, x: FloatArray) -> npt.NDArray[np.int8]:
        """Return the int8 levels of the weight's numbers nearest to `x` [any shape], which scales divided."""
        return to_bytes(x) if self.format == "fp8" else quantize(x, 1.0, self.weight_bits)

    def level_values(self, levels: npt.NDArray[np.int8]) -> FloatArray:
        """Return the numbers that `levels` [any shape] of the weight stand for, in float32."""
        return from_bytes(levels) if self.format == "fp8" else levels.astype(np.float32)

    def quantized_input(self, x: FloatArray, scale: FloatArray | float) -> npt.NDArray[np.float32]:
        """Return what stands for the activation `x` [any shape] before it is multiplied by `scale` again.

        Levels, with the zero_point in them, or numbers of E4M3.
        """
        if self.format == "fp8":
            return round_to_e4m3(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
        return quantize(x, scale, self.activation_bits, zero_point=self.zero_point).astype(np.float32)

    def with_activation_scale(self, scale: npt.NDArray[np.float32]) -> LayerQParams:
        """Return a copy with another `activation_scale` [G]."""
        return replace(self, activation_scale=np.asarray(scale, np.float32))

    def _check_format(self) -> None:
        if self.format not in FORMATS:
            raise self._error(
                f"format {self.format!r}", " or ".join(FORMATS), "Upgrade AccuQuant, or calibrate again"
            )
        if self.format == "fp8" and (self.weight_bits, self.activation_bits, self.zero_point) != (8, 8, 0):
            raise self._error(
                f"fp8 with {self.weight_bits}-bit weights, {self.activation_bits}-bit activations and "
                f"zero_point {self.zero_point}",
                "8 bits and zero_point 0: E4M3 has no other width, and its numbers are symmetric",
                "The file is damaged or was edited; run `accuquant calibrate` again",
            )

    def _check_scale(self, what: str, scale: FloatArray, length: int | None) -> None:
        wanted = f"({length},) for axis {self.axis} of weight {list(self.weight_shape)}"
        if scale.ndim != 1 or scale.size == 0 or (length is not None and scale.shape != (length,)):
            raise self._error(
                f"a {what} of shape {scale.shape}",
                wanted if length is not None else "one value for each step group",
                "The recipe was calibrated from another checkpoint; run `accuquant calibrate` again",
            )
        bad = ~(np.isfinite(scale) & (scale > 0))
        if bad.any():
            index = int(np.argmax(bad))
            raise self._error(
                f"{what}[{index}] = {scale[index]}",
                "a finite value above 0",
                "The file is damaged or was edited; run `accuquant calibrate` again",
            )

    def _check_levels(self) -> None:
        if self.weight_levels is None:
            return
        qmin, qmax = level_bounds(self.weight_bits)
        levels = self.weight_levels
        if levels.dtype != np.int8 or levels.shape != self.weight_shape:
            raise self._error(
                f"weight levels of type {levels.dtype} and shape {levels.shape}",
                f"int8 {self.weight_shape}",
                "The recipe was calibrated from another checkpoint; run `accuquant calibrate` again",
            )
        if self.format == "fp8" and np.isnan(from_bytes(levels)).any():
            raise self._error(
                "weight levels with bytes that are NaN in E4M3",
                "numbers",
                "The file is damaged or was edited; run `accuquant calibrate` again",
            )
        if levels.min() < qmin or levels.max() > qmax:
            raise self._error(
                f"weight levels from {levels.min()} to {levels.max()}",
                f"levels in [{qmin}, {qmax}] for {self.weight_bits}-bit weights",
                "The file is damaged or was edited; run `accuquant calibrate` again",
            )

    def _check_bias(self) -> None:
        bias, length = self.bias_correction, self.weight_shape[self.axis]
        if bias is None:
            return
        # a transposed convolution's weight has the outputs of one group; a bias has those of all
        groups = max(1, bias.size // length) if self.kind == "conv_transpose2d" else 1
        if bias.shape != (groups * length,) or not np.isfinite(bias).all():
            raise self._error(
                f"a bias correction of shape {bias.shape}",
                f"({length},) finite values",
                "The recipe was calibrated from another checkpoint; run `accuquant calibrate` again",
            )

    def _error(self, got: str, expected: str, remedy: str) -> RecipeError:
        return RecipeError(f"layer '{self.name}'", got=got, expected=expected, remedy=remedy)
