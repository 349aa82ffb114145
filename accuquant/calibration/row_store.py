"""Rows of a layer's input on their way to a mean and a covariance: as sums, or as a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Wider covariances are computed with in float32; in float64, one of 6144 inputs takes 0.3 GB.
PRECISE_WIDTH = 6144
#: Rows, and numbers, that are read at once.
_CHUNK, _NUMBERS = 512, 2**22
_COLUMNS = 1024


class RowSums:
    """Mean and centred products, kept up to date chunk by chunk.

    Each chunk is centred on its own mean before it is squared, and chunks are merged in float64 (Chan,
    Golub and LeVeque, 1983, eq. 2.1): a mean that is large beside the deviations takes no digits from them.
    """

    def __init__(self, groups: int, width: int) -> None:
        self._mean = torch.zeros(groups, width, dtype=torch.float64)
        self._products = torch.zeros(groups, width, width, dtype=torch.float64)
        self._rows = _Distinct()

    def add(self, rows: Tensor) -> None:
        """Add rows [n, G * d]."""
        groups, width = self._mean.shape
        split = rows.reshape(-1, groups, width).transpose(0, 1)
        mean = split.double().mean(1)
        centred = (split - mean[:, None]).float()
        before, added = self._rows.count, len(rows)
        self._rows.add(rows)
        shift, share = mean - self._mean, added / self._rows.count
        self._products += centred.mT @ centred
        self._products.baddbmm_(shift[:, :, None], shift[:, None, :], alpha=before * share)
        self._mean += shift * share

    def moments(self) -> SummedMoments:
        """Return the moments of the rows so far; they change with what is added later."""
        return SummedMoments(self._mean, self._products, self._rows.count, self._rows.distinct)


@dataclass(frozen=True)
class SummedMoments:
    """Mean [G, d] and centred products [G, d, d] in memory."""

    mean: Tensor
    products: Tensor
    rows: int
    distinct: int

    def covariance(self, group: int, columns: slice) -> Tensor:
        """Return the covariance of some of a group's inputs, a new tensor."""
        return self.products[group, columns, columns] / self.rows


class RowFile:
    """Rows in a file, for layers whose covariance is larger than they are, or than memory."""

    def __init__(self, path: Path, groups: int, width: int) -> None:
        self._path, self._groups, self._width = path, groups, width
        self._rows = _Distinct()

    def add(self, rows: Tensor) -> None:
        """Append rows [n, G * d]."""
        self._rows.add(rows)
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows.numpy(), np.float32).data)

    def moments(self) -> FiledMoments:
        """Return the moments of the rows so far."""
        mean = torch.zeros(self._groups, self._width, dtype=torch.float64)
        for rows in read_rows(self._path, self._groups, self._width):
            mean += rows.double().sum(0)
        return FiledMoments(mean / self._rows.count, self._rows.count, self._rows.distinct, self._path)


@dataclass(frozen=True)
class FiledMoments:
    """Mean [G, d], and the file that covariances are summed from when they are asked for."""

    mean: Tensor
    rows: int
    distinct: int
    path: Path

    def covariance(self, group: int, columns: slice) -> Tensor:
        """Return the covariance of some of a group's inputs, a new tensor.

        float64 up to PRECISE_WIDTH inputs, float32 sums of centred rows above.
        """
        mean = self.mean[group, columns]
        width, dtype = len(mean), _precision(len(mean))
        total = torch.zeros(width, width, dtype=dtype)
        for rows in read_rows(self.path, *self.mean.shape):
            centred = (rows[:, group, columns] - mean).to(dtype)
            for start in range(0, width, _COLUMNS):
                some = slice(start, start + _COLUMNS)
                total[start:, some].addmm_(centred[:, start:].T, centred[:, some])
        for start in range(0, width, _COLUMNS):
            stop = start + _COLUMNS
            total[start:stop, stop:] = total[stop:, start:stop].T
        return total.div_(self.rows)

    @property
    def folder(self) -> Path:
        """Where a factor may lie meanwhile."""
        return self.path.with_suffix(".factor")

    def variances(self, group: int, columns: slice) -> Tensor:
        """Return the variances of some of a group's inputs, in float64."""
        return torch.stack([rows.double().square().sum(0) for rows in self.scaled_rows(group, columns)]).sum(
            0
        )

    def scaled_rows(self, group: int, columns: slice) -> Iterator[Tensor]:
        """Yield rows [n, d] whose products add up to the covariance of some of a group's inputs."""
        mean, root = self.mean[group, columns], math.sqrt(self.rows)
        for rows in read_rows(self.path, *self.mean.shape):
            yield ((rows[:, group, columns] - mean) / root).float()


def _precision(width: int) -> torch.dtype:
    return torch.float64 if width <= PRECISE_WIDTH else torch.float32


def read_rows(path: Path, groups: int, width: int) -> Iterator[Tensor]:
    """Yield the rows of a RowFile's file in chunks [n, G, d]."""
    count = max(1, min(_CHUNK, _NUMBERS // (groups * width)))
    with path.open("rb") as file:
        while len(values := np.fromfile(file, np.float32, count * groups * width)):
            yield torch.from_numpy(values).reshape(-1, groups, width)


class _Distinct:
    """Counts rows, and how many of them differ from all others, by eight bytes a row."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: list[npt.NDArray[np.int64]] = []

    @property
    def distinct(self) -> int:
        return len(np.unique(np.concatenate(self._seen))) if self._seen else 0

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self._seen.append(np.array([hash(row.tobytes()) for row in rows.numpy()], np.int64))
