"""Whether bfloat16 around int8 pays on a processor and keeps the images, as `accuquant verify` found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from accuquant._util.cache_folder import cache_folder
from accuquant._util.facts import FactsError, Real, read_facts
from accuquant._util.files import write_text
from accuquant.runtime.cpu_forms.form import FloatPrecision
from accuquant.runtime.cpu_forms.form_choice import choice_key, warn_of_cache

#: Decibels of PSNR against FP32 that bfloat16 around int8 may cost.
MAX_LOSS_DB = 0.5
Milliseconds = Annotated[float, Meta(gt=0, le=1e9)]


@dataclass(frozen=True)
class PrecisionVerdict:
    """The median PSNR against FP32 and the median time of a call, int8 in float32 and in bfloat16."""

    fp32_db: Real
    bf16_db: Real
    fp32_ms: Milliseconds
    bf16_ms: Milliseconds

    @property
    def takes_bf16(self) -> bool:
        """Whether bfloat16 is faster and costs at most MAX_LOSS_DB."""
        return self.bf16_ms < self.fp32_ms and self.bf16_db >= self.fp32_db - MAX_LOSS_DB

    def __str__(self) -> str:
        speed, change = self.fp32_ms / self.bf16_ms, self.bf16_db - self.fp32_db
        return f"bf16 around int8: {speed:.2f} times as fast as fp32, PSNR {change:+.2f} dB"


def choose_precision(
    asked: FloatPrecision | Literal["auto"], graph: str, place: str
) -> tuple[FloatPrecision, str]:
    """Return the precision around int8 for the graph of this digest at `place`, and why ("" where asked)."""
    if asked != "auto":
        return asked, ""
    if "BF16" not in place:
        return "fp32", "this processor has no bfloat16"
    verdict = load_verdict(graph, place)
    if verdict is None:
        return "fp32", "`accuquant verify` has not compared bf16 with fp32 around int8 here"
    return ("bf16" if verdict.takes_bf16 else "fp32"), str(verdict)


def load_verdict(graph: str, place: str) -> PrecisionVerdict | None:
    """Return what was kept; None where nothing was, or where a warning says that it cannot be read."""
    path = _path(graph, place)
    try:
        return read_facts(path, PrecisionVerdict)
    except FileNotFoundError:
        return None
    except (OSError, FactsError) as fault:
        warn_of_cache(f"'{path}' is not what was kept there ({fault}): fp32 around int8 is taken")
        return None


def keep_verdict(graph: str, place: str, verdict: PrecisionVerdict) -> None:
    """Keep `verdict` for those who ask for "auto" on this machine."""
    write_text(_path(graph, place), json.dumps(asdict(verdict)))


def _path(graph: str, place: str) -> Path:
    return cache_folder() / "cpu_forms" / f"{choice_key(['precision', graph, place])}.json"
