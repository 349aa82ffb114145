from __future__ import annotations

import numpy as np
import pytest

from accuquant.evaluation.block_moments import BlockMoments
from accuquant.evaluation.bootstrap import (
    block_draws,
    block_edges,
    drawn_figures,
    mean_interval,
    set_interval,
)
from accuquant.verification.measure.frechet import Moments


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    interval = mean_interval(values, 2000)
    reach = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.value == pytest.approx(reach, rel=0.1)
    assert interval.value - interval.low == pytest.approx(reach, rel=0.1)


def test_an_interval_is_the_same_in_every_run() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert mean_interval(values, 100) == mean_interval(values.copy(), 100)
    assert np.array_equal(block_draws(20, 80), block_draws(20, 80))


def test_intervals_hold_the_truth_in_about_95_of_100_cases() -> None:
    rng = np.random.default_rng(2)
    held = [mean_interval(rng.normal(size=40) + 1.0, 100) for _ in range(100)]
    assert 0.87 <= np.mean([i.low <= 1.0 <= i.high for i in held]) <= 0.99


def test_the_interval_of_a_set_is_the_deviation_between_sets() -> None:
    """The oracle: the figure, here a variance, of many independent sets."""
    rng = np.random.default_rng(3)
    figures = [rng.normal(size=2000).var() for _ in range(300)]
    values = rng.normal(size=2000).reshape(20, 100)
    draws = block_draws(20, 800)
    drawn = drawn_figures(draws, lambda counts: float(np.repeat(values, counts, axis=0).var()))
    interval = set_interval(float(values.var()), drawn)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * np.std(figures), rel=0.35)


def test_blocks_hold_each_image_once() -> None:
    assert block_edges(2048)[:3] == (0, 102, 204)
    assert block_edges(2048)[-1] == 2048
    assert len(block_edges(2048)) == 21
    assert block_edges(3) == (0, 1, 2, 3)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_moments_by_blocks_are_those_of_the_drawn_features(
    batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    features = np.random.default_rng(4).normal(5.0, 1.0, (50, 6))
    edges = block_edges(50)
    blocks = BlockMoments(tmp_path_factory.mktemp("m"), "features.int8", edges)
    for first in range(0, 50, batch):
        blocks.add(features[first : first + batch])
    counts = block_draws(20, 4)[0]
    drawn = np.concatenate(
        [np.tile(features[a:b], (n, 1)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    )
    merged = blocks.merged(counts)
    np.testing.assert_allclose(merged.mean, drawn.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(drawn, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 192])
def test_the_distance_of_running_moments_is_torchmetrics_on_2048_images(width: int) -> None:
    """The same images, their features through torchmetrics' own sums and formula, in float64."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(12 * 12, width, generator=generator, dtype=torch.float64)

    class Features(torch.nn.Module):
        num_features = width

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images.double().flatten(1) @ projection).relu()

    network = Features()
    real = torch.rand(2048, 1, 12, 12, generator=generator, dtype=torch.float64)
    fake = (real + 0.1 * torch.randn(real.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    metric = FrechetInceptionDistance(network, normalize=True, input_img_size=(1, 12, 12)).set_dtype(
        torch.float64
    )
    ours = [Moments(), Moments()]
    for first in range(0, 2048, 96):
        for images, moments, is_real in ((real, ours[0], True), (fake, ours[1], False)):
            batch = images[first : first + 96]
            metric.update(batch, real=is_real)
            moments.add(network(batch).numpy())
    assert ours[0].gaussian.distance(ours[1].gaussian) == pytest.approx(float(metric.compute()), rel=1e-6)
