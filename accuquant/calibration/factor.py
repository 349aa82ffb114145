"""Cholesky factors of covariances that fill a good part of memory: computed in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 512
#: Columns that GPTQ rounds before their errors are carried to all others.
COLUMNS = 128

#: Columns [start, stop) of a factor: start, stop, L[start:stop, start:stop], and (L^T errors)[start:stop] of
#: the errors [d, O] behind them.
Block = tuple[int, int, Tensor, Tensor]


@dataclass(frozen=True)
class Factor:
    """L L^T = C[order, order]: C [d, d] with its rows and columns sorted, smallest variance first.

    What `lower` holds above its diagonal means nothing.
    """

    lower: Tensor
    order: Tensor

    @classmethod
    def of_(cls, covariance: Tensor) -> Factor:
        """Factor a positive definite covariance [d, d], which is overwritten.

        Raises ArithmeticError where it is not positive definite.
        """
        order = torch.argsort(covariance.diagonal(), stable=True)
        return cls(cholesky_(reorder_(covariance, order)), order)

    @property
    def dtype(self) -> torch.dtype:
        """The type that products with the factor are computed in."""
        return self.lower.dtype

    def blocks(self, errors: Tensor) -> Iterator[Block]:
        """Yield the factor's columns from the last to the first; `errors` [d, O] are filled in meanwhile."""
        return panel_blocks([(0, self.lower)], errors)

    def delete(self) -> None:
        """Do nothing: there are no files."""

    def solve(self, right: Tensor) -> Tensor:
        """Return C^-1 right for right [d, n]."""
        half = torch.linalg.solve_triangular(self.lower, right[self.order], upper=False)
        solution = torch.empty_like(right)
        solution[self.order] = torch.linalg.solve_triangular(self.lower.T, half, upper=True)
        return solution


def panel_blocks(panels: Iterable[tuple[int, Tensor]], errors: Tensor) -> Iterator[Block]:
    """Yield blocks of columns from panels L[start:, start:stop], each with its start, the last one first."""
    for first, panel in panels:
        for stop in range(first + panel.shape[1], first, -COLUMNS):
            start = max(stop - COLUMNS, first)
            some = slice(start - first, stop - first)
            yield start, stop, panel[some, some], panel[stop - first :, some].T @ errors[stop:]


def reorder_(matrix: Tensor, order: Tensor) -> Tensor:
    """Sort rows and columns of `matrix` [d, d] by `order` [d], in place."""
    for start in range(0, len(matrix), _BLOCK):
        some = slice(start, start + _BLOCK)
        matrix[some] = matrix[some][:, order]
    for start in range(0, len(matrix), _BLOCK):
        some = slice(start, start + _BLOCK)
        matrix[:, some] = matrix[:, some][order]
    return matrix


def cholesky_(matrix: Tensor) -> Tensor:
    """Turn a positive definite `matrix` [d, d] into its lower factor, in place.

    What it holds above the diagonal means nothing then. torch's own needs a second matrix, 2.1 GB at 23,040
    inputs. Raises ArithmeticError where the matrix is not positive definite.
    """
    for start in range(0, len(matrix), _BLOCK):
        stop = min(start + _BLOCK, len(matrix))
        done = slice(start, stop)
        corner, failed = torch.linalg.cholesky_ex(matrix[done, done])
        if failed:
            raise ArithmeticError("the matrix is not positive definite")
        matrix[done, done] = corner
        panel = torch.linalg.solve_triangular(corner.T, matrix[stop:, done], upper=True, left=False)
        matrix[stop:, done] = panel
        for at in range(stop, len(matrix), _BLOCK):
            rows = panel[at - stop :]
            matrix[at:, at : at + _BLOCK].addmm_(rows, rows[:_BLOCK].T, alpha=-1)
    return matrix
