"""The Frechet distance between two sets of features, compared as Gaussians."""

from __future__ import annotations

import numpy as np

from accuquant.errors import VerificationError
from accuquant.qparams import FloatArray


def frechet_distance(first: FloatArray, second: FloatArray) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features [N, D] and [M, D].

    m and S are the mean and the unbiased covariance (Heusel et al., arXiv 1706.08500, eq. 6). Raises
    VerificationError for fewer than two images or features of other widths.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1:] != first.shape[1:]:
            raise VerificationError(
                "Frechet distance",
                got=f"features of shapes {first.shape} and {second.shape}",
                expected="[N, D] and [M, D] with at least two images each",
                remedy="Verify with --num-images 2 or more (64 or more for a stable figure)",
            )
    return gaussian_frechet_distance(*_moments(first), *_moments(second))


def gaussian_frechet_distance(
    mean1: FloatArray, covariance1: FloatArray, mean2: FloatArray, covariance2: FloatArray
) -> float:
    """Return the Frechet distance between two Gaussians, means [D] and covariances [D, D].

    tr((S1 S2)^(1/2)) = tr((R S2 R)^(1/2)) with R = S1^(1/2): the second form is symmetric, so that its
    eigenvalues are real and non-negative also where S1 or S2 is singular (fewer images than features).
    """
    root = _square_root(covariance1)
    eigenvalues = np.linalg.eigvalsh(root @ covariance2 @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    difference = mean1 - mean2
    distance = difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2.0 * cross
    return float(max(distance, 0.0))


def _moments(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    values = np.asarray(features, np.float64)
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))


def _square_root(matrix: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(matrix)
    root: FloatArray = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
