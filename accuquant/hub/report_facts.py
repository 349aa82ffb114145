"""What a model card takes from the JSON that `accuquant verify` writes, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import Count, FactsError, Real, Text, as_facts, read_json

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SummaryFacts:
    """Statistics of a metric; None where a number was not finite."""

    median: Real | None
    mean: Real | None
    minimum: Real | None


@dataclass(frozen=True)
class _Metrics:
    psnr: SummaryFacts
    ssim: SummaryFacts


@dataclass(frozen=True)
class _Fidelity:
    summary: _Metrics


@dataclass(frozen=True)
class _Settings:
    num_images: Count | None = None
    steps: Count | None = None
    engine: Text | None = None


@dataclass(frozen=True)
class _Fid:
    extractor: Text
    engine: Real | None


@dataclass(frozen=True)
class _Placement:
    int8_mac_share: Annotated[float, Meta(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class _Sizes:
    fp32_weights: Count | None = None
    engine_files: Count | None = None


@dataclass(frozen=True)
class _Latency:
    name: Text
    median_ms: Real


@dataclass(frozen=True)
class ReportFacts:
    """The fields of a report that a model card shows; a report has more."""

    passed: bool | None
    checks: list[Any]
    settings: _Settings
    fidelity: _Fidelity
    fid2fp32: _Fid | None = None
    placement: _Placement = _Placement()
    sizes: _Sizes = _Sizes()
    latencies: tuple[_Latency, ...] = field(default=())

    @classmethod
    def of(cls, values: Any) -> ReportFacts:
        """Read the values of a report. Raises FactsError for others."""
        if not isinstance(values, dict) or values.get("schema_version") != _SCHEMA_VERSION:
            raise FactsError("JSON without a report's fields")
        return as_facts(values, cls)


def read_report_facts(path: Path) -> ReportFacts:
    """Read a report's JSON file. Raises FactsError and OSError."""
    return ReportFacts.of(read_json(path))
