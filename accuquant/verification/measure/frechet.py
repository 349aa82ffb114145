"""The Frechet distance between two sets of features, compared as Gaussians."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from accuquant.errors import VerificationError
from accuquant.qparams import FloatArray


@dataclass(frozen=True)
class Gaussian:
    """What the Frechet distance compares: a mean [D] and a covariance [D, D]."""

    mean: FloatArray
    covariance: FloatArray

    def distance(self, other: Gaussian) -> float:
        """Return the Frechet distance; 0 between equal ones."""
        return gaussian_frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


class Moments:
    """Mean [D] and covariance [D, D] of features that come in batches [N, D] and need not stay.

    Sums are float64 and centred: a batch is merged as Chan, Golub and LeVeque do (1983, eq. 2.1), so that
    features far from zero lose nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: FloatArray = np.zeros(0)
        #: Sum of the outer products of deviations from the mean, [D, D].
        self.scatter: FloatArray = np.zeros((0, 0))

    @classmethod
    def of(cls, features: FloatArray) -> Moments:
        """Return the moments of features [N, D]."""
        moments = cls()
        moments.add(features)
        return moments

    @classmethod
    def merged(cls, parts: Iterable[tuple[int, Moments]]) -> Moments:
        """Return the moments of disjoint sets of features, each counted as often as its number says."""
        chosen = [(times, part) for times, part in parts if times and part.count]
        moments = cls()
        moments.count = sum(times * part.count for times, part in chosen)
        if chosen:
            moments.mean = np.zeros_like(chosen[0][1].mean)
            moments.scatter = np.zeros_like(chosen[0][1].scatter)
        for times, part in chosen:
            moments.mean += times * part.count / moments.count * part.mean
        for times, part in chosen:
            shift = part.mean - moments.mean
            moments.scatter += times * (part.scatter + part.count * np.outer(shift, shift))
        return moments

    @property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, of two images or more."""
        return Gaussian(self.mean, self.covariance)

    @property
    def covariance(self) -> FloatArray:
        """The unbiased covariance."""
        return self.scatter / (self.count - 1)

    def add(self, features: FloatArray) -> None:
        """Take in features [N, D]. Raises VerificationError where they have another width than before."""
        values = np.asarray(features, np.float64)
        if values.ndim != 2 or not len(values) or (self.count and values.shape[1:] != self.mean.shape):
            raise VerificationError(
                "Frechet distance",
                got=f"features of shape {values.shape}",
                expected=f"[N, {self.mean.size}], as those before" if self.count else "[N, D]",
                remedy="Return one row of features of one width for each image",
            )
        if self.count == 0:
            self.mean = np.zeros(values.shape[1])
            self.scatter = np.zeros((values.shape[1], values.shape[1]))
        total = self.count + len(values)
        shift = values.mean(0) - self.mean
        rows = np.vstack([values - values.mean(0), np.sqrt(self.count * len(values) / total) * shift])
        self.scatter = self.scatter + rows.T @ rows
        self.mean = self.mean + shift * len(values) / total
        self.count = total


def frechet_distance(first: FloatArray | Moments, second: FloatArray | Moments) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features [N, D] and [M, D], or their moments.

    m and S are the mean and the unbiased covariance (Heusel et al., arXiv 1706.08500, eq. 6). Raises
    VerificationError for fewer than two images or features of other widths.
    """
    one, other = (x if isinstance(x, Moments) else Moments.of(x) for x in (first, second))
    if min(one.count, other.count) < 2 or one.mean.shape != other.mean.shape:
        sizes = " and ".join(f"({x.count}, {x.mean.size})" for x in (one, other))
        raise VerificationError(
            "Frechet distance",
            got=f"features of shapes {sizes}",
            expected="[N, D] and [M, D] with at least two images each",
            remedy="Verify with --num-images 2 or more (64 or more for a stable figure)",
        )
    return gaussian_frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def gaussian_frechet_distance(
    mean1: FloatArray, covariance1: FloatArray, mean2: FloatArray, covariance2: FloatArray
) -> float:
    """Return the Frechet distance between two Gaussians, means [D] and covariances [D, D].

    tr((S1 S2)^(1/2)) is the sum of the singular values of S1^(1/2) S2^(1/2). The roots of the eigenvalues of
    S1 S2 would be the same, but where S1 or S2 is singular (fewer images than features) each eigenvalue that
    should be 0 is off by 1e-16, and its root by 1e-8: more than small distances can bear.
    """
    product = _square_root(covariance1) @ _square_root(covariance2)
    cross = np.linalg.svd(product, compute_uv=False).sum()
    difference = mean1 - mean2
    distance = difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2.0 * cross
    return float(max(distance, 0.0))


def _square_root(matrix: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(matrix)
    root: FloatArray = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
