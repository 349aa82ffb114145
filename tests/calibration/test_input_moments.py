"""What a layer multiplies its weight with, gathered while a network runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration import input_moments
from accuquant.calibration.input_moments import MomentSampler, moments_of, plan_rows
from accuquant.calibration.row_store import PRECISE_WIDTH
from accuquant.networks.device import CPU

COLUMNS = slice(0, 4)


def draw(
    layers: Mapping[str, nn.Module], batches: list[list[dict[str, Tensor]]], folder: Path
) -> list[tuple[dict[str, Tensor], Path]]:
    """Let a sampler for each of `batches` see calls, inputs by layer; return what they drew."""
    drawn = []
    plans = plan_rows(layers, sum(map(len, batches)), len(batches))
    for seed, calls in enumerate(batches):
        path = folder / f"{seed}.rows"
        sampler = MomentSampler(layers, plans, seed, path)
        with sampler.watch():
            for inputs in calls:
                for name, x in inputs.items():
                    layers[name](x)
        drawn.append((sampler.finish(), path))
    assert not any(layer._forward_pre_hooks for layer in layers.values())
    return drawn


@pytest.mark.parametrize("batches", [1, 2, 4])
@pytest.mark.parametrize("memory", [2**30, 100], ids=["sums", "rows"])
def test_moments_are_mean_and_covariance(
    memory: int, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_moments, "MEMORY", memory)
    layer = nn.Linear(4, 2)
    mixing = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, -1, 0.1]])
    mean = torch.tensor([0.0, 1.0, -2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    inputs = [{"l": torch.randn(4, 600, 4, generator=generator) @ mixing + mean} for _ in range(8)]
    size = 8 // batches
    drawn = draw({"l": layer}, [inputs[k : k + size] for k in range(0, 8, size)], tmp_path)
    assert len(list(tmp_path.iterdir())) == batches * (memory < 1000)
    moments = moments_of("l", layer, drawn)
    expected = mixing.T @ mixing
    covariance = moments.covariance(0, COLUMNS, CPU)
    torch.testing.assert_close(moments.mean[0], mean.double(), atol=0.08, rtol=0)
    torch.testing.assert_close(covariance, expected.double(), atol=0.25, rtol=0)
    torch.testing.assert_close(covariance, covariance.T)
    assert (moments.rows, moments.distinct > 6000) == (8192, True)


def test_the_widest_layers_keep_rows_and_come_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"b": nn.Linear(8, 1), "a": nn.Linear(20, 1), "c": nn.Conv2d(2, 2, 1, groups=2)}
    monkeypatch.setattr(input_moments, "MEMORY", 8 * (8**2 + 2))
    monkeypatch.setattr(input_moments, "ROWS", 150)
    call = {"b": torch.randn(5, 8), "a": torch.randn(5, 20), "c": torch.randn(7, 2, 3, 3)}
    plans = plan_rows(layers, 3)
    assert list(plans) == ["b", "a", "c"]
    assert {name: plan.summed for name, plan in plans.items()} == {"b": True, "a": False, "c": True}
    drawn = draw(layers, [[call] * 3], tmp_path)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [3 * 5 * 20 * 4]
    assert [moments_of(name, layers[name], drawn).rows for name in ("a", "b", "c")] == [15, 15, 150]


@pytest.mark.parametrize(("batches", "summed"), [(1, True), (100, False)])
def test_sums_are_kept_where_they_take_less_room_than_a_batchs_rows(batches: int, summed: bool) -> None:
    (plan,) = plan_rows({"l": nn.Linear(100, 1)}, 1000, batches).values()
    assert (plan.rows, plan.summed) == (8, summed)  # 8000 or 80 rows of 100 numbers, 100 x 100 sums


def test_a_layer_too_wide_for_float64_sums_keeps_rows(tmp_path: Path) -> None:
    wide = nn.Linear(PRECISE_WIDTH + 1, 1)
    assert not plan_rows({"w": wide}, 1)["w"].summed
    ((_, path),) = draw({"w": wide}, [[{"w": torch.randn(2, wide.in_features)}]], tmp_path)
    assert path.stat().st_size == 2 * wide.in_features * 4


def test_what_is_drawn_in_a_batch_depends_on_its_seed_alone(tmp_path: Path) -> None:
    layers = {"l": nn.Linear(40, 2)}
    generator = torch.Generator().manual_seed(0)
    calls = [[{"l": torch.randn(50, 40, generator=generator)}] for _ in range(3)]
    in_order = draw(layers, calls, tmp_path)
    plans = plan_rows(layers, 3, 3)
    for seed in (2, 0):
        sampler = MomentSampler(layers, plans, seed, tmp_path / "again.rows")
        with sampler.watch():
            layers["l"](calls[seed][0]["l"])
        again = sampler.finish()
        assert again.keys() == in_order[seed][0].keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in in_order[seed][0].items())
