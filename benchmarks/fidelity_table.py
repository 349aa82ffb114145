"""Statistics of the fidelity study: seeds that were judged are drawn again and again, for intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.verification.measure.frechet import frechet_distance

Floats = npt.NDArray[np.float64]
COLUMNS = (
    "network, setting, method",
    "seeds",
    "FID2FP32",
    "PSNR median dB",
    "worst dB",
    "latent MSE",
    "seconds",
    "CPU s",
    "peak MB",
)
_DRAWS = 200
_INTERVAL = (2.5, 97.5)


def interval(statistic: Callable[[npt.NDArray[np.int64]], float], count: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of `statistic`, a function of indices of judged seeds [count].

    The percentile method of Efron, "Bootstrap methods: another look at the jackknife", 1979; 200 draws.
    """
    random = np.random.default_rng(0)
    values = [statistic(random.integers(0, count, count)) for _ in range(_DRAWS)]
    low, high = np.percentile(values, _INTERVAL)
    return float(low), float(high)


def row(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells of one line: several calibration seeds are averaged, judged seed by judged seed."""
    decibels, errors = (_stacked(runs, key).mean(0) for key in ("psnr", "latent_mse"))
    features, reference = _stacked(runs, "features"), _stacked(runs, "reference_features")

    def fid(chosen: npt.NDArray[np.int64]) -> float:
        pairs = zip(features, reference, strict=True)
        return float(np.mean([frechet_distance(theirs[chosen], ours[chosen]) for ours, theirs in pairs]))

    everything = np.arange(len(decibels))
    return [
        name,
        f"{len(runs)}",
        _with_interval(fid, everything, ".4f"),
        _with_interval(lambda chosen: float(np.median(decibels[chosen])), everything, ".1f"),
        f"{_stacked(runs, 'psnr').min():.1f}",
        f"{np.median(errors):.1e}",
        *(f"{np.median([run[key] for run in runs]):.0f}" for key in ("seconds", "cpu_seconds")),
        f"{max(run['peak_mb'] for run in runs):.0f}",
    ]


def _with_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], everything: npt.NDArray[np.int64], form: str
) -> str:
    low, high = interval(statistic, len(everything))
    return f"{statistic(everything):{form}} ({low:{form}} to {high:{form}})"


def _stacked(runs: Sequence[dict[str, Any]], key: str) -> Floats:
    return np.array([run[key] for run in runs], np.float64)
