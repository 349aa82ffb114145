"""The second moments of what a layer multiplies its weight with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from accuquant.calibration.input_moments import MomentSampler, random_rows, unfolds

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (2, 3), "padding": (0, 2), "stride": (1, 2), "dilation": (2, 1)},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_rows_of_a_convolution_are_columns_of_unfold(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(3, 5, **options)
    x = torch.randn(2, 3, 7, 6)
    rows = random_rows(layer, x, 60, torch.Generator().manual_seed(0))
    columns = functional.unfold(
        x,
        layer.kernel_size,
        layer.dilation,
        layer.padding,
        layer.stride,
    )
    possible = columns.permute(0, 2, 1).reshape(-1, columns.shape[1])
    assert rows.shape == (60, possible.shape[1])
    found = (rows[:, None] == possible[None]).all(2)
    assert found.any(1).all()
    assert found.any(0).sum() > 10


def test_rows_give_the_layer_s_outputs() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, stride=2)
    x = torch.randn(2, 3, 8, 8)
    rows = random_rows(layer, x, 20, torch.Generator().manual_seed(0))
    ours = rows @ layer.weight.flatten(1).T + layer.bias
    outputs = layer(x).permute(0, 2, 3, 1).reshape(-1, 5)
    assert ((ours[:, None] - outputs).abs().amax(2).amin(1) < 1e-5).all()


def test_moments_are_mean_and_covariance() -> None:
    layer = nn.Linear(4, 2)
    sampler = MomentSampler({"l": layer}, calls=8, seed=0)
    mixing = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, -1, 0.1]])
    mean = torch.tensor([0.0, 1.0, -2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    with sampler.watch():
        for _ in range(8):
            layer(torch.randn(4, 600, 4, generator=generator) @ mixing + mean)
    moments = sampler.moments()["l"]
    expected = mixing.T @ mixing
    torch.testing.assert_close(moments.mean, mean.double(), atol=0.08, rtol=0)
    torch.testing.assert_close(moments.covariance, expected.double(), atol=0.25, rtol=0)
    assert torch.equal(moments.covariance, moments.covariance.T)
    assert not layer._forward_pre_hooks


def test_layers_that_are_no_plain_matrix_product_are_skipped() -> None:
    skipped: dict[str, nn.Module] = {
        "transposed": nn.ConvTranspose2d(2, 2, 1),
        "grouped": nn.Conv2d(2, 2, 1, groups=2),
        "circular": nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        "same": nn.Conv2d(2, 2, 3, padding="same"),
        "huge": nn.Linear(10_000, 1),
    }
    assert not any(unfolds(layer) for layer in skipped.values())
    assert unfolds(nn.Linear(4, 4))
    assert unfolds(nn.Conv2d(2, 2, 3, padding=1))
    assert MomentSampler(skipped, 1, 0).moments() == {}
