"""Verification: the same seeds through FP32, fake-quantized and engine networks, compared."""

from __future__ import annotations

from accuquant.verification.report.report import Report
from accuquant.verification.report.thresholds import Thresholds, Verdict
from accuquant.verification.verify import verify

__all__ = ["Report", "Thresholds", "Verdict", "verify"]
