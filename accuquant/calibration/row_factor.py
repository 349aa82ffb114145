"""Cholesky factors of covariances of few rows: in the space of the rows, without a covariance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .factor import COLUMNS, Block


class RowFactor:
    """L L^T = C[order, order] in float64 for C = X^T X + added I of n rows X [n, d]: d * n numbers, not d^2.

    Below the diagonal L_ij = x_i . p_j, where p_j = M_j x_j / L_jj, L_jj^2 = added + x_j . M_j x_j, and
    M_{j+1} = M_j - p_j p_j^T from M_0 = I on (columns x of X; by induction over the columns of Cholesky's
    algorithm). That takes 2 d n^2 products where a covariance takes d^2 n / 2 and its factor d^3 / 3, and O
    outputs are rounded with 2 d n O in place of d^2 O / 2.
    """

    dtype = torch.float64

    def __init__(self, rows: Tensor, added: float) -> None:
        """Factor centred rows [n, d], divided by the root of their number, with `added` on the diagonal.

        Raises ArithmeticError where that is not positive definite.
        """
        rows = rows.double()
        self.order = torch.argsort(rows.square().sum(0), stable=True)
        self._rows = rows[:, self.order]
        self._directions = torch.empty_like(self._rows)
        self._corners: dict[int, Tensor] = {}
        left = torch.eye(len(rows), dtype=torch.float64).to(rows.device)
        for start in range(0, len(self.order), COLUMNS):
            some = slice(start, start + COLUMNS)
            seen = left @ self._rows[:, some]
            corner = self._rows[:, some].T @ seen
            corner.diagonal().add_(added)
            lower, failed = torch.linalg.cholesky_ex(corner)
            if failed:
                raise ArithmeticError("the matrix is not positive definite")
            found = torch.linalg.solve_triangular(lower.T, seen, upper=True, left=False)
            left -= found @ found.T
            self._directions[:, some], self._corners[start] = found, lower

    def blocks(self, errors: Tensor) -> Iterator[Block]:
        """Yield the factor's columns from the last to the first; `errors` [d, O] are filled in meanwhile."""
        behind = self._rows.new_zeros(len(self._rows), errors.shape[1])
        for start, corner in reversed(self._corners.items()):
            some = slice(start, start + len(corner))
            yield start, some.stop, corner, self._directions[:, some].T @ behind
            behind += self._rows[:, some] @ errors[some]

    def delete(self) -> None:
        """Do nothing: there are no files."""


def few_rows(rows: int, width: int) -> bool:
    """Say whether the way by rows is the shorter one, in float64 where wide covariances are in float32."""
    return rows * 8 <= width
