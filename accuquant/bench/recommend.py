"""What to use: the fastest, and whether int8 or FP8 pays on each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from accuquant._util.interleave import Times
from accuquant.bench.contender import QUANTIZED, Contender

#: Percent of the rounds on either side that a difference may miss to be called clear.
_TAIL = 10


@dataclass(frozen=True)
class Speed:
    """How many times as fast one contender is as another, round by round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, fast: Times, slow: Times) -> Speed:
        """Compare the rounds in pairs: what disturbed one of a pair most likely disturbed the other."""
        ratios = np.divide(slow.values, fast.values)
        low, high = np.percentile(ratios, [_TAIL, 100 - _TAIL])
        return cls(float(np.median(ratios)), float(low), float(high))

    @property
    def is_clear(self) -> bool:
        """Whether it is faster, or slower, in nearly every round."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        return f"{self.median:.2f} times as fast ({self.low:.2f} to {self.high:.2f})"


def recommend(contenders: Sequence[Contender], times: Mapping[str, Times]) -> str:
    """Return one or two sentences: what to use on this machine, and why.

    The fastest of int8 and FP8 is compared with the fastest float contender of the same device. "INT8 is
    slower here" is an answer.
    """
    ranked = sorted(contenders, key=lambda contender: times[contender.name].median)
    best = ranked[0]
    quantized = _first(ranked, best.device, quantized=True)
    plain = _first(ranked, best.device, quantized=False)
    use = f"Use {best.name}: {times[best.name].median:.1f} ms a call."
    if quantized is None or plain is None:
        missing = "float" if plain is None else "int8"
        place = "GPU" if best.device == "cuda" else "CPU"
        return f"{use} There is no {missing} contender on the {place} to compare it with."
    speed = Speed.of(times[quantized.name], times[plain.name])
    if speed.median >= 1 and speed.is_clear:
        return f"Use {quantized.name}: it is {speed} as {plain.name}."
    if speed.is_clear:
        slower = Speed.of(times[plain.name], times[quantized.name])
        return (
            f"{quantized.precision.upper()} is slower than {plain.precision.upper()} here: "
            f"keep {plain.name}, which is {slower} as {quantized.name}."
        )
    return (
        f"No clear difference between {quantized.name} and {plain.name} ({speed}): "
        f"keep {plain.name}, unless the smaller file matters."
    )


def _first(ranked: Sequence[Contender], device: str, *, quantized: bool) -> Contender | None:
    fitting = (c for c in ranked if c.device == device and (c.precision in QUANTIZED) == quantized)
    return next(fitting, None)
