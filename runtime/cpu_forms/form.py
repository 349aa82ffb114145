"""A form: how OpenVINO is to compute what a file says, without changing what it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

ZeroPoints = Literal["written", "inside", "bordered"]
Norms = Literal["written", "channels"]
Ranks = Literal["written", "equal"]
Products = Literal["written", "convolutions"]
FloatPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class CpuForm:
    """What the runner may choose where several ways compute the same function.

    `zero_points` "written" leaves the addition before a symmetric pair, "inside" moves it into the pair,
    "bordered" leaves it and pads with zeros, corrected at the borders, where the file pads before the pair.
    `norms` "channels" computes a GroupNormalization from sums over the image of each channel, as one
    multiply-add a channel. `ranks` "equal" gives operands of arithmetic on images the images' rank, which
    changes no bit of a result. `precision` is what is neither int8 nor told otherwise by the file.
    `products` "convolutions" computes int8 products of rows as convolutions of one tap.
    """

    zero_points: ZeroPoints = "written"
    norms: Norms = "written"
    ranks: Ranks = "written"
    precision: FloatPrecision = "fp32"
    products: Products = "written"

    def __str__(self) -> str:
        return ", ".join(
            f"{field.name.replace('_', '-')} {getattr(self, field.name)}" for field in fields(self)
        )


#: What the file says, operator by operator.
AS_WRITTEN = CpuForm()
