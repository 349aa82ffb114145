"""Thresholds: what a comparison has to reach, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accuquant.errors import UsageError


@dataclass(frozen=True)
class Thresholds:
    """Limits that an exported model must keep; None switches a check off.

    Image metrics compare the engine with the FP32 pipeline and are medians over the seeds, since a few
    seeds diverge chaotically whatever the precision. `min_lowering_psnr` compares the engine with the
    fake-quantized network. The level limits apply when layers are compared; they are the share of
    activation elements of any one layer that may be on another level, and how many levels apart.
    `min_int8_share` is the share of the calibrated layers' multiply-accumulates that the engine really runs
    in int8, 0 to 1.
    """

    min_psnr: float | None = 30.0
    min_ssim: float | None = None
    min_cosine: float | None = None
    max_fid: float | None = None
    min_lowering_psnr: float | None = 35.0
    max_level_share: float | None = 1e-3
    max_level_difference: int | None = 1
    min_int8_share: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (value != value or (value < 0 and name != "min_cosine")):
                raise UsageError(
                    f"threshold {name}",
                    got=str(value),
                    expected="a number of at least 0, or none to switch the check off",
                    remedy="Correct the option",
                )

    def check_measurable(self, *, fid: bool, int8_share: bool = True) -> None:
        """Raise UsageError where a limit is set on FID2FP32 or the int8 share and it will not be measured."""
        if self.min_int8_share is not None and not int8_share:
            raise UsageError(
                "threshold min_int8_share",
                got="a limit for an engine that does not say what it runs in int8",
                expected="--engine openvino",
                remedy="Drop the limit; `accuquant audit` says it of TensorRT and ONNX Runtime",
            )
        if self.max_fid is not None and not fid:
            raise UsageError(
                "threshold max_fid",
                got="a limit on FID2FP32, which is not measured",
                expected="a feature network and at least two images",
                remedy="Give --features and --num-images, or drop the limit",
            )


@dataclass(frozen=True)
class Check:
    """One measured value against its limit; `relation` is "at least" or "at most"."""

    name: str
    value: float
    relation: str
    limit: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit; NaN never does."""
        return self.value >= self.limit if self.relation == "at least" else self.value <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The outcome of all checks."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool | None:
        """Whether every check passed; None where there was none: nothing was judged."""
        return all(check.passed for check in self.checks) if self.checks else None

    @property
    def word(self) -> str:
        """The outcome for people."""
        return {True: "passed", False: "failed", None: "not judged"}[self.passed]


#: Thresholds field -> (measured figure, name for people, unit).
_CHECKS = {
    "min_psnr": ("psnr", "Median PSNR, quantized against FP32", "dB"),
    "min_ssim": ("ssim", "Median SSIM, quantized against FP32", ""),
    "min_cosine": ("cosine", "Median cosine, quantized against FP32", ""),
    "max_fid": ("fid", "FID2FP32", ""),
    "min_lowering_psnr": ("lowering_psnr", "Median PSNR, engine against simulation", "dB"),
    "max_level_share": ("level_share", "Largest share of differing levels in a layer", ""),
    "max_level_difference": ("level_difference", "Largest difference of a level", "levels"),
    "min_int8_share": ("int8_share", "Share of the calibrated work that ran in int8", ""),
}


def judge(measured: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    """Check the measured figures: "psnr", "ssim", "cosine", "fid", "lowering_psnr", "level_share", ...

    A limit on something that was not measured is not checked.
    """
    checks = []
    for field, (key, name, unit) in _CHECKS.items():
        limit = getattr(thresholds, field)
        if limit is not None and key in measured:
            relation = "at least" if field.startswith("min_") else "at most"
            checks.append(Check(name, float(measured[key]), relation, float(limit), unit))
    return Verdict(tuple(checks))
