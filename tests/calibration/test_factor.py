"""Factors that are computed in place, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accuquant.calibration import factor as factors
from accuquant.calibration.factor import Factor, cholesky_, reorder_

SIZE = 40


def covariance() -> torch.Tensor:
    x = torch.randn(200, SIZE, generator=torch.Generator().manual_seed(0)).double()
    return x.T @ (x * torch.rand(200, 1).double())


@pytest.fixture(params=[512, 7, 8])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_the_factor_is_numpy_s_and_takes_the_place_of_the_matrix() -> None:
    matrix = covariance()
    expected = np.linalg.cholesky(matrix.numpy())
    found = cholesky_(matrix)
    assert found is matrix
    np.testing.assert_allclose(found.tril(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("block")
def test_rows_and_columns_are_sorted_in_place() -> None:
    matrix, order = covariance(), torch.randperm(SIZE)
    expected = matrix[order][:, order]
    assert reorder_(matrix, order) is matrix
    assert torch.equal(matrix, expected)


@pytest.mark.usefixtures("block")
def test_a_factor_solves_in_the_order_of_the_inputs() -> None:
    matrix, right = covariance(), torch.randn(SIZE, 3).double()
    expected = np.linalg.solve(matrix.numpy(), right.numpy())
    factor = Factor.of_(matrix.clone())
    np.testing.assert_allclose(factor.solve(right), expected, rtol=1e-9, atol=1e-12)
    assert (matrix.diagonal()[factor.order].diff() >= 0).all()


def test_a_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    with pytest.raises(ArithmeticError, match=r"not positive definite"):
        cholesky_(torch.zeros(3, 3))
