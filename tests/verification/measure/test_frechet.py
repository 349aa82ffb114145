from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from accuquant.errors import VerificationError
from accuquant.verification.measure.frechet import Moments, frechet_distance, gaussian_frechet_distance

Array = npt.NDArray[np.float64]


def random_covariance(rng: np.random.Generator, size: int) -> Array:
    factor = rng.normal(size=(size, size))
    covariance: Array = factor @ factor.T
    return covariance


def test_distance_between_gaussians_with_commuting_covariances() -> None:
    # |m1 - m2|^2 + sum (sqrt(a) - sqrt(b))^2 = 25 + (2 - 1)^2 + (3 - 5)^2
    distance = gaussian_frechet_distance(
        np.array([0.0, 0.0]), np.diag([4.0, 9.0]), np.array([3.0, 4.0]), np.diag([1.0, 25.0])
    )
    assert distance == pytest.approx(30.0)


def test_distance_between_gaussians_agrees_with_the_eigenvalues_of_the_product() -> None:
    rng = np.random.default_rng(0)
    first, second = random_covariance(rng, 6), random_covariance(rng, 6)
    cross = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    wanted = np.trace(first) + np.trace(second) - 2 * cross
    measured = gaussian_frechet_distance(np.zeros(6), first, np.zeros(6), second)
    assert measured == pytest.approx(wanted)
    assert measured == pytest.approx(gaussian_frechet_distance(np.zeros(6), second, np.zeros(6), first))


def test_a_shift_of_all_features_costs_its_squared_length() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet_distance(features, features + np.array([1.0, 2.0, 0.0, 2.0])) == pytest.approx(9.0)


def test_scaled_features_have_a_closed_form() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4))
    features -= features.mean(0)
    trace = np.trace(np.cov(features, rowvar=False))
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * trace)


def test_fewer_images_than_features_is_sound() -> None:
    features = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(features, features[::-1] + 0.5) == pytest.approx(16.0, rel=1e-5)


@pytest.mark.parametrize("count", [40, 64, 200])
def test_moments_give_the_distance_of_all_features_where_they_are_singular_too(count: int) -> None:
    """By the features themselves: tr((S1 S2)^(1/2)) is the sum of the singular values of X Y^T."""
    rng = np.random.default_rng(0)
    first = np.abs(rng.normal(size=(count, 64))) @ np.abs(rng.normal(size=(64, 64))) / 64
    second = first + 0.01 * rng.normal(size=first.shape)
    centred = [(x - x.mean(0)) / np.sqrt(count - 1) for x in (first, second)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = first.mean(0) - second.mean(0)
    wanted = shift @ shift + sum((x**2).sum() for x in centred) - 2 * cross
    moments = [Moments(), Moments()]
    for start in range(0, count, 16):
        for each, features in zip(moments, (first, second), strict=True):
            each.add(features[start : start + 16])
    assert frechet_distance(*moments) == pytest.approx(wanted, rel=1e-9)


def test_one_image_is_refused() -> None:
    with pytest.raises(VerificationError, match="at least two images"):
        frechet_distance(np.zeros((1, 4)), np.zeros((1, 4)))


def test_features_of_other_widths_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"\(3, 4\) and \(3, 5\)"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("sizes", [(1,) * 60, (7, 1, 30, 22), (60,)])
def test_moments_of_batches_are_those_of_all_features(sizes: tuple[int, ...], offset: float) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 5)) @ random_covariance(rng, 5) + offset
    moments, first = Moments(), 0
    for size in sizes:
        moments.add(features[first : first + size])
        first += size
    assert moments.count == 60
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_and_features_may_be_mixed() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet_distance(Moments.of(features), features + 1.0) == pytest.approx(4.0)


@pytest.mark.parametrize("batch", [np.zeros((3, 4)), np.zeros(5), np.zeros((0, 5))])
def test_a_batch_of_another_width_is_refused(batch: Array) -> None:
    moments = Moments.of(np.zeros((2, 5)))
    with pytest.raises(VerificationError, match=r"expected \[N, 5\], as those before"):
        moments.add(batch)
