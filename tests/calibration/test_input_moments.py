"""What a layer multiplies its weight with, gathered while a network runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from accuquant.calibration import input_moments
from accuquant.calibration.input_moments import MomentSampler
from accuquant.calibration.row_store import PRECISE_WIDTH

COLUMNS = slice(0, 4)


@pytest.mark.parametrize("memory", [2**30, 100], ids=["in memory", "in files"])
def test_moments_are_mean_and_covariance(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_moments, "MEMORY", memory)
    layer = nn.Linear(4, 2)
    sampler = MomentSampler({"l": layer}, 8, 0, tmp_path)
    mixing = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, -1, 0.1]])
    mean = torch.tensor([0.0, 1.0, -2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    with sampler.watch():
        for _ in range(8):
            layer(torch.randn(4, 600, 4, generator=generator) @ mixing + mean)
    assert not layer._forward_pre_hooks
    assert len(list(tmp_path.iterdir())) == (memory < 1000)
    moments = sampler.take("l")
    expected = mixing.T @ mixing
    covariance = moments.covariance(0, COLUMNS)
    torch.testing.assert_close(moments.mean[0], mean.double(), atol=0.08, rtol=0)
    torch.testing.assert_close(covariance, expected.double(), atol=0.25, rtol=0)
    torch.testing.assert_close(covariance, covariance.T)
    assert (moments.rows, moments.distinct > 6000) == (8192, True)
    assert sampler.names() == []


def test_the_widest_layers_go_to_files_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"b": nn.Linear(8, 1), "a": nn.Linear(20, 1), "c": nn.Conv2d(2, 2, 1, groups=2)}
    # sums, and up to 512 rows on their way to them: of one layer with 8 inputs, and of two groups of one
    monkeypatch.setattr(input_moments, "MEMORY", (8 * 8**2 + 4 * 512 * 8) + 2 * (8 + 4 * 512))
    sampler = MomentSampler(layers, 100_000, 0, tmp_path)
    assert sampler.names() == ["b", "a", "c"]
    with sampler.watch():
        for _ in range(3):
            layers["b"](torch.randn(5, 8))
            layers["a"](torch.randn(5, 20))
            layers["c"](torch.randn(5, 2, 3, 3))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [3 * 20 * 4]
    assert [sampler.take(name).rows for name in ("a", "b", "c")] == [3, 3, 3]


def test_a_layer_too_wide_for_float64_sums_goes_to_a_file(tmp_path: Path) -> None:
    wide = nn.Linear(PRECISE_WIDTH + 1, 1)
    sampler = MomentSampler({"w": wide}, input_moments.ROWS // 8, 0, tmp_path)
    with sampler.watch():
        wide(torch.randn(2, wide.in_features))
    assert (tmp_path / "0.rows").stat().st_size == 8 * wide.in_features * 4


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [(1, 2**28), (2**20, 2**28), (2**21, 2**29), (2**24, 2**30)],
)
def test_sums_take_an_eighth_of_the_weights_within_bounds(outputs: int, expected: int) -> None:
    with torch.device("meta"):  # 2 KiB an output
        layers = {"a": nn.Linear(256, outputs, bias=False), "b": nn.Linear(outputs, 256, bias=False)}
    assert input_moments.memory_of(layers) == expected
