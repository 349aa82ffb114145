"""Means and covariances of rows, against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from accuquant.calibration import row_store
from accuquant.calibration.row_store import (
    FiledMoments,
    RowPart,
    RowSums,
    RowWriter,
    filed_moments,
    row_keys,
)

GROUPS, WIDTH = 2, 5
ALL = slice(0, WIDTH)


def make_rows(count: int = 1300, offset: float = 3.0, size: float = 1.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(GROUPS * WIDTH, GROUPS * WIDTH))
    return (rng.normal(size=(count, GROUPS * WIDTH)) @ mixing * size + offset).astype(np.float32)


class InFile:
    """Rows that go through a RowWriter, with another layer's between them, and come back as moments."""

    def __init__(self, path: Path) -> None:
        self._path, self._writer, self._keys = path, RowWriter(path), list[torch.Tensor]()

    def add(self, rows: torch.Tensor) -> None:
        self._keys.append(row_keys(rows))
        self._writer.add("l", rows)
        self._writer.add("other", torch.full((3, 7), 1e6))

    def moments(self) -> FiledMoments:
        places = self._writer.finish()["l"].tolist()
        parts = [RowPart(self._path, first, count) for first, count in places]
        return filed_moments(parts, GROUPS, WIDTH, self._keys)


@pytest.fixture(params=["sums", "file", "file in pieces"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RowSums | InFile:
    if request.param == "sums":
        return RowSums(GROUPS, WIDTH)
    if request.param == "file in pieces":
        monkeypatch.setattr(row_store, "BUFFER", 500)
    return InFile(tmp_path / "0.rows")


def fill(store: RowSums | InFile, rows: npt.NDArray[np.float32]) -> None:
    for chunk in np.array_split(rows, [100, 101, 900]):
        store.add(torch.from_numpy(chunk))


def test_moments_are_those_of_numpy_for_each_group(store: RowSums | InFile) -> None:
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


def test_a_mean_that_is_large_beside_the_deviations_costs_no_digits(store: RowSums | InFile) -> None:
    rows = make_rows(offset=1000.0, size=0.01)
    fill(store, rows)
    own = rows[:, :WIDTH].astype(np.float64)
    found = store.moments().covariance(0, ALL).numpy()
    np.testing.assert_allclose(found, np.cov(own.T, bias=True), rtol=1e-4, atol=1e-9)


def test_a_covariance_may_be_overwritten(store: RowSums | InFile) -> None:
    fill(store, make_rows())
    moments = store.moments()
    kept = moments.covariance(1, ALL).clone()
    moments.covariance(1, ALL).zero_()
    assert torch.equal(moments.covariance(1, ALL), kept)


def test_rows_that_come_again_are_counted_once(store: RowSums | InFile) -> None:
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
    store = InFile(tmp_path / "0.rows")
    rows = make_rows(offset=1000.0)
    fill(store, rows)
    found = store.moments().covariance(1, ALL)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.T)
    expected = np.cov(rows[:, WIDTH:].astype(np.float64).T, bias=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sums_of_batches_add_up_to_those_of_all_rows() -> None:
    rows = torch.from_numpy(make_rows(offset=50.0))
    whole, joined = RowSums(GROUPS, WIDTH), RowSums(GROUPS, WIDTH)
    whole.add(rows)
    for part in (rows[:300], rows[300:301], rows[301:]):
        batch = RowSums(GROUPS, WIDTH)
        batch.add(part)
        joined.add_sums(batch.sums())
    expected, found = whole.moments(), joined.moments()
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.covariance(1, ALL), expected.covariance(1, ALL), rtol=1e-5, atol=1e-5)
    assert (found.rows, found.distinct) == (1300, 1300)


def test_where_rows_lie_does_not_change_their_moments_by_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for buffer in (1, 10_000, 2**30):
        monkeypatch.setattr(row_store, "BUFFER", buffer)
        store = InFile(tmp_path / f"{buffer}.rows")
        fill(store, make_rows())
        found.append(store.moments())
    assert all(torch.equal(some.mean, found[0].mean) for some in found)
    assert all(torch.equal(some.covariance(0, ALL), found[0].covariance(0, ALL)) for some in found)


def test_rows_have_the_same_keys_in_every_process() -> None:
    """Of zeros, computed by another implementation of BLAKE2b (RFC 7693): b2sum -l 64."""
    keys = row_keys(torch.zeros(2, 4))
    assert keys[0] == keys[1]
    assert keys.numpy().tobytes()[:8].hex() == "5250a507f994740e"


def test_a_full_disk_names_the_file(tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    writer = RowWriter(tmp_path / "0.rows")
    writer.add("l", torch.zeros(1000, 10))
    small_disk(10_000)
    with pytest.raises(OSError, match=r"File too large: '.*0\.rows'"):
        writer.finish()
    writer.close()
