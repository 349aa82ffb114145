"""Rows of a layer's input on their way to a mean and a covariance: as sums, or in a file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from accuquant._util.files import errors_name
from accuquant.networks.device import CPU

#: Wider covariances are computed with in float32; in float64, one of 6144 inputs takes 0.3 GB.
PRECISE_WIDTH = 6144
#: Rows, and numbers, that are read at once.
_CHUNK, _NUMBERS = 512, 2**22
_COLUMNS = 1024
#: Bytes of rows that wait in memory until they are written together.
BUFFER = 64 << 20


class RowSums:
    """Mean and centred products, kept up to date chunk by chunk.

    Each chunk is centred on its own mean before it is squared, and chunks are merged in float64 (Chan,
    Golub and LeVeque, 1983, eq. 2.1): a mean that is large beside the deviations takes no digits from them.
    """

    def __init__(self, groups: int, width: int) -> None:
        self._mean = torch.zeros(groups, width, dtype=torch.float64)
        self._products = torch.zeros(groups, width, width, dtype=torch.float64)
        self._count = 0
        self._keys: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add rows [n, G * d]."""
        groups, width = self._mean.shape
        split = rows.reshape(-1, groups, width).transpose(0, 1)
        mean = split.double().mean(1)
        centred = (split - mean[:, None]).float()
        self._merge(mean, centred.mT @ centred, len(rows), row_keys(rows))

    def add_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Add what `sums` of other rows returned."""
        self._merge(sums["mean"], sums["products"], len(sums["keys"]), sums["keys"])

    def sums(self) -> dict[str, Tensor]:
        """Return the sums so far by name, and a key of each row."""
        return {"mean": self._mean, "products": self._products, "keys": torch.cat(self._keys)}

    def _merge(self, mean: Tensor, products: Tensor, added: int, keys: Tensor) -> None:
        before = self._count
        self._count += added
        self._keys.append(keys)
        shift, share = mean - self._mean, added / self._count
        self._products += products
        self._products.baddbmm_(shift[:, :, None], shift[:, None, :], alpha=before * share)
        self._mean += shift * share

    def moments(self) -> SummedMoments:
        """Return the moments of the rows so far; they change with what is added later."""
        return SummedMoments(self._mean, self._products, self._count, count_distinct(self._keys))


@dataclass(frozen=True)
class SummedMoments:
    """Mean [G, d] and centred products [G, d, d] in memory."""

    mean: Tensor
    products: Tensor
    rows: int
    distinct: int

    def covariance(self, group: int, columns: slice, device: torch.device = CPU) -> Tensor:
        """Return the covariance of some of a group's inputs, a new tensor on `device`."""
        return self.products[group, columns, columns].to(device) / self.rows


class RowWriter:
    """Rows of many layers on their way into one file, in the order in which they come.

    They wait in memory until there are BUFFER bytes of them, and are written layer by layer.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to write `path`, over what a killed run left there."""
        self._path = path
        self._file: IO[bytes] | None = None
        self._waiting: dict[str, list[Tensor]] = {}
        self._bytes = self._written = 0
        self._places: dict[str, list[tuple[int, int]]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Add rows [n, G * d] of a layer. Raises OSError, which names the file, where the disk is full."""
        self._waiting.setdefault(name, []).append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= BUFFER:
            self._write()

    def finish(self) -> dict[str, Tensor]:
        """Write what waits, and return for each layer where its rows are: (first byte, rows) [k, 2]."""
        self._write()
        if self._file is not None:
            with errors_name(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        return {name: torch.tensor(places, dtype=torch.int64) for name, places in self._places.items()}

    def close(self) -> None:
        """Let go of the file; where it was not finished, it is of no use."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which has been told
                self._file.close()

    def _write(self) -> None:
        with errors_name(self._path):
            if self._file is None and self._waiting:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb")
            for name, parts in self._waiting.items():
                assert self._file is not None
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
                rows = np.ascontiguousarray(joined.numpy(), np.float32)
                self._file.write(rows.data)
                self._places.setdefault(name, []).append((self._written, len(rows)))
                self._written += rows.nbytes
        self._waiting, self._bytes = {}, 0


@dataclass(frozen=True)
class RowPart:
    """Some rows of a layer in a file of a RowWriter: from a byte on, so many."""

    path: Path
    first: int
    count: int


def filed_moments(parts: Sequence[RowPart], groups: int, width: int, keys: Sequence[Tensor]) -> FiledMoments:
    """Return the moments of rows [n, G * d] in files; `keys` tell which of them are the same."""
    mean = torch.zeros(groups, width, dtype=torch.float64)
    for rows in read_rows(parts, groups, width):
        mean += rows.double().sum(0)
    count = sum(part.count for part in parts)
    return FiledMoments(mean / count, count, count_distinct(keys), tuple(parts))


@dataclass(frozen=True)
class FiledMoments:
    """Mean [G, d], and the rows that covariances are summed from when they are asked for."""

    mean: Tensor
    rows: int
    distinct: int
    parts: tuple[RowPart, ...]

    def covariance(self, group: int, columns: slice, device: torch.device = CPU) -> Tensor:
        """Return the covariance of some of a group's inputs, a new tensor on `device`.

        float64 up to PRECISE_WIDTH inputs, float32 sums of centred rows above.
        """
        mean = self.mean[group, columns]
        width, dtype = len(mean), _precision(len(mean))
        total = torch.zeros(width, width, dtype=dtype, device=device)
        for rows in read_rows(self.parts, *self.mean.shape):
            centred = (rows[:, group, columns] - mean).to(device, dtype)
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
        first = self.parts[0]
        return first.path.with_name(f"{first.path.stem}-{first.first}.factor")

    def variances(self, group: int, columns: slice) -> Tensor:
        """Return the variances of some of a group's inputs, in float64."""
        return torch.stack([rows.double().square().sum(0) for rows in self.scaled_rows(group, columns)]).sum(
            0
        )

    def scaled_rows(self, group: int, columns: slice) -> Iterator[Tensor]:
        """Yield rows [n, d] whose products add up to the covariance of some of a group's inputs."""
        mean, root = self.mean[group, columns], math.sqrt(self.rows)
        for rows in read_rows(self.parts, *self.mean.shape):
            yield ((rows[:, group, columns] - mean) / root).float()


def _precision(width: int) -> torch.dtype:
    return torch.float64 if width <= PRECISE_WIDTH else torch.float32


def read_rows(parts: Sequence[RowPart], groups: int, width: int) -> Iterator[Tensor]:
    """Yield the rows of all parts in chunks [n, G, d], which know nothing of the parts' borders."""
    size = max(1, min(_CHUNK, _NUMBERS // (groups * width)))
    chunk, held = torch.empty(size, groups, width), 0
    for part in parts:
        with part.path.open("rb") as file:
            file.seek(part.first)
            left = part.count
            while left:
                count = min(left, size - held)
                values = np.fromfile(file, np.float32, count * groups * width)
                chunk[held : held + count] = torch.from_numpy(values).reshape(count, groups, width)
                left, held = left - count, held + count
                if held == size:
                    yield chunk
                    held = 0
    if held:
        yield chunk[:held]


def row_keys(rows: Tensor) -> Tensor:
    """Return a number for each row [n, ...] -> int64 [n], the same for the same bytes, in every process."""
    digests = (hashlib.blake2b(row, digest_size=8).digest() for row in np.ascontiguousarray(rows.numpy()))
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64)


def count_distinct(keys: Sequence[Tensor]) -> int:
    """Return how many different rows there are, by their keys."""
    return len(np.unique(torch.cat(list(keys)).numpy()))
