"""Cholesky factors of covariances that may not be held in memory: panels of columns, in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .factor import Block, panel_blocks

_PANEL = 512
#: Bytes of panels that are summed in one pass over the rows.
AT_ONCE = 2**28


class FiledFactor:
    """L L^T = C[order, order] in float32, panel by panel: smallest variance first, as in Factor.

    A panel holds the columns [start, stop) of L from row `start` on. One panel and the one that it is
    reduced by are in memory at a time; each is read about once for every panel behind it.
    """

    def __init__(self, folder: Path, order: Tensor) -> None:
        """Prepare for panels in `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.order = order
        self.dtype = torch.float32
        self._starts = range(0, len(order), _PANEL)

    @classmethod
    def of(
        cls, rows: Callable[[], Iterable[Tensor]], variances: Tensor, added: float, folder: Path
    ) -> FiledFactor:
        """Factor a covariance with `added` on its diagonal.

        Every call of `rows` yields the centred rows [n, d] in chunks, divided by the root of their number:
        the covariance is the sum of their products, and `variances` [d] are its diagonal. Raises
        ArithmeticError where it is not positive definite.
        """
        factor = cls(folder, torch.argsort(variances, stable=True))
        factor._sum(rows)
        for start in factor._starts:
            factor._reduce(start, added)
        return factor

    def panels(self) -> Iterator[tuple[int, Tensor]]:
        """Yield where each panel starts, and L[start:, start:stop], from the last to the first."""
        for start in reversed(self._starts):
            yield start, self._read(start)

    def blocks(self, errors: Tensor) -> Iterator[Block]:
        """Yield the factor's columns from the last to the first; `errors` [d, O] are filled in meanwhile."""
        return panel_blocks(self.panels(), errors)

    def delete(self) -> None:
        """Remove the files and their folder."""
        for start in self._starts:
            self._path(start).unlink(missing_ok=True)
        self._folder.rmdir()

    def _sum(self, rows: Callable[[], Iterable[Tensor]]) -> None:
        """Write the panels of the covariance, as many in one pass over the rows as fit."""
        width = len(self.order)
        together = max(1, AT_ONCE // (4 * _PANEL * width))
        for first in range(0, len(self._starts), together):
            starts = self._starts[first : first + together]
            sums = {s: torch.zeros(width - s, min(_PANEL, width - s)) for s in starts}
            seen = self.order[starts[0] :]
            for chunk in rows():
                sorted_rows = chunk[:, seen].float()
                for start, total in sums.items():
                    behind = sorted_rows[:, start - starts[0] :]
                    total.addmm_(behind.T, behind[:, : total.shape[1]])
            for start, total in sums.items():
                self._write(start, total)

    def _reduce(self, start: int, added: float) -> None:
        """Turn a panel of the covariance into one of the factor; those before it are done."""
        panel = self._read(start)
        width = panel.shape[1]
        panel.diagonal().add_(added)
        for before in range(0, start, _PANEL):
            lower = self._read(before, start)
            panel.addmm_(lower, lower[:width].T, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(panel[:width])
        if failed:
            raise ArithmeticError("the matrix is not positive definite")
        panel[:width] = corner
        panel[width:] = torch.linalg.solve_triangular(corner.T, panel[width:], upper=True, left=False)
        self._write(start, panel)

    def _path(self, start: int) -> Path:
        return self._folder / f"{start}.panel"

    def _write(self, start: int, panel: Tensor) -> None:
        panel.numpy().tofile(self._path(start))

    def _read(self, start: int, row: int | None = None) -> Tensor:
        """Read a panel, from `row` of the matrix on, by default from its first."""
        width = min(_PANEL, len(self.order) - start)
        skipped = 0 if row is None else 4 * (row - start) * width
        values = np.fromfile(self._path(start), np.float32, offset=skipped)
        return torch.from_numpy(values).reshape(-1, width)
