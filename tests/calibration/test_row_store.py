"""Means and covariances of rows, against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from accuquant.calibration import row_store
from accuquant.calibration.row_store import RowFile, RowSums

GROUPS, WIDTH = 2, 5
ALL = slice(0, WIDTH)


def make_rows(count: int = 1300, offset: float = 3.0, size: float = 1.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(GROUPS * WIDTH, GROUPS * WIDTH))
    return (rng.normal(size=(count, GROUPS * WIDTH)) @ mixing * size + offset).astype(np.float32)


@pytest.fixture(params=["sums", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RowSums | RowFile:
    if request.param == "sums":
        return RowSums(GROUPS, WIDTH)
    return RowFile(tmp_path / "0.rows", GROUPS, WIDTH)


def fill(store: RowSums | RowFile, rows: npt.NDArray[np.float32]) -> None:
    for chunk in np.array_split(rows, [100, 101, 900]):
        store.add(torch.from_numpy(chunk))


def test_moments_are_those_of_numpy_for_each_group(store: RowSums | RowFile) -> None:
    rows = make_rows()
    fill(store, rows)
    moments = store.moments()
    for group in range(GROUPS):
        own = rows[:, group * WIDTH : (group + 1) * WIDTH].astype(np.float64)
        np.testing.assert_allclose(moments.mean[group], own.mean(0), rtol=1e-12)
        expected = np.cov(own.T, bias=True)
        np.testing.assert_allclose(moments.covariance(group, ALL), expected, rtol=1e-5, atol=1e-6)
        some = moments.covariance(group, slice(1, 4))
        np.testing.assert_allclose(some, expected[1:4, 1:4], rtol=1e-5, atol=1e-6)


def test_a_mean_that_is_large_beside_the_deviations_costs_no_digits(store: RowSums | RowFile) -> None:
    rows = make_rows(offset=1000.0, size=0.01)
    fill(store, rows)
    own = rows[:, :WIDTH].astype(np.float64)
    found = store.moments().covariance(0, ALL).numpy()
    np.testing.assert_allclose(found, np.cov(own.T, bias=True), rtol=1e-4, atol=1e-9)


def test_a_covariance_may_be_overwritten(store: RowSums | RowFile) -> None:
    fill(store, make_rows())
    moments = store.moments()
    kept = moments.covariance(1, ALL).clone()
    moments.covariance(1, ALL).zero_()
    assert torch.equal(moments.covariance(1, ALL), kept)


def test_rows_that_come_again_are_counted_once(store: RowSums | RowFile) -> None:
    rows = make_rows(50)
    for _ in range(4):
        store.add(torch.from_numpy(rows))
    moments = store.moments()
    assert (moments.rows, moments.distinct) == (200, 50)


def test_wide_covariances_are_summed_in_float32_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "PRECISE_WIDTH", 4)
    monkeypatch.setattr(row_store, "_COLUMNS", 2)
    monkeypatch.setattr(row_store, "_CHUNK", 90)
    store = RowFile(tmp_path / "0.rows", GROUPS, WIDTH)
    rows = make_rows(offset=1000.0)
    fill(store, rows)
    found = store.moments().covariance(1, ALL)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.T)
    expected = np.cov(rows[:, WIDTH:].astype(np.float64).T, bias=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
