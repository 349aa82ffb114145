"""Factors whose panels lie in files, against numpy's and against those in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration import filed_factor, rounding
from accuquant.calibration.factor import Factor
from accuquant.calibration.filed_factor import FiledFactor
from accuquant.calibration.input_moments import Moments, MomentSampler, moments_of, plan_rows
from accuquant.calibration.rounding import compensate, gptq
from accuquant.calibration.row_factor import RowFactor, few_rows
from accuquant.errors import CalibrationError
from accuquant.qparams import LayerQParams, fingerprint

SIZE, ADDED = 40, 0.25


@pytest.fixture(params=[(512, 2**28), (7, 2**28), (16, 1), (8, 4 * 8 * SIZE * 2)])
def panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel; several that are summed at once, one by one, or two by two."""
    monkeypatch.setattr(filed_factor, "_PANEL", request.param[0])
    monkeypatch.setattr(filed_factor, "AT_ONCE", request.param[1])


def make_rows() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(300, SIZE, generator=rng) @ torch.randn(SIZE, SIZE, generator=rng)
    return mixed * torch.rand(SIZE, generator=rng) / 300**0.5


def factored(folder: Path) -> tuple[FiledFactor, Tensor]:
    rows = make_rows()
    covariance = rows.double().T @ rows.double()
    factor = FiledFactor.of(lambda: rows.split(90), covariance.diagonal(), ADDED, folder / "factor")
    return factor, covariance


@pytest.mark.usefixtures("panels")
def test_the_panels_are_those_of_numpy_s_factor_of_the_sorted_covariance(tmp_path: Path) -> None:
    factor, covariance = factored(tmp_path)
    order = factor.order.numpy()
    assert np.all(np.diff(covariance.diagonal().numpy()[order]) >= 0)
    expected = np.linalg.cholesky(covariance.numpy()[order][:, order] + ADDED * np.eye(SIZE))
    seen, stop = [], SIZE
    for start, panel in factor.panels():
        width = panel.shape[1]
        assert (start + width, len(panel)) == (stop, SIZE - start)
        below = panel.numpy().copy()
        below[:width] = np.tril(below[:width])
        np.testing.assert_allclose(below, expected[start:, start : start + width], rtol=1e-4, atol=1e-5)
        seen.append(start)
        stop = start
    assert stop == 0
    assert len(seen) == -(-SIZE // filed_factor._PANEL)
    factor.delete()
    assert not (tmp_path / "factor").exists()


@pytest.mark.usefixtures("panels")
def test_gptq_rounds_by_panels_as_it_does_by_the_whole_factor(tmp_path: Path) -> None:
    factor, covariance = factored(tmp_path)
    whole = Factor.of_(covariance + ADDED * torch.eye(SIZE))
    weight = torch.randn(50, SIZE, generator=torch.Generator().manual_seed(1))
    scale = torch.full((50,), 0.2)
    levels, expected = gptq(weight, scale, factor, 4), gptq(weight, scale, whole, 4)
    assert (levels != expected).float().mean() < 0.01, "float32 against float64"
    assert (levels != (weight / 0.2).round().clamp(-8, 7)).float().mean() > 0.1, "rounding to nearest differs"


def test_a_matrix_that_is_not_positive_definite_has_no_factor(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match=r"not positive definite"):
        FiledFactor.of(lambda: [torch.zeros(4, 3)], torch.zeros(3), 0.0, tmp_path)


@pytest.mark.parametrize("columns", [7, 128])
def test_the_factor_of_few_rows_is_numpy_s_of_their_covariance(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.calibration.row_factor.COLUMNS", columns)
    rows = make_rows()[:5]
    factor = RowFactor(rows, ADDED)
    covariance = (rows.double().T @ rows.double()).numpy()
    order = factor.order.numpy()
    assert np.all(np.diff(covariance.diagonal()[order]) >= 0)
    expected = np.linalg.cholesky(covariance[order][:, order] + ADDED * np.eye(SIZE))
    errors, before = torch.randn(SIZE, 3).double(), SIZE
    for start, stop, corner, owed in factor.blocks(errors):
        assert stop == before
        np.testing.assert_allclose(np.tril(corner), expected[start:stop, start:stop], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(owed, expected[stop:, start:stop].T @ errors[stop:].numpy(), atol=1e-9)
        before = start
    assert before == 0
    with pytest.raises(ArithmeticError, match="not positive definite"):
        RowFactor(rows * float("nan"), ADDED)


def test_a_layer_that_gave_few_rows_is_rounded_as_by_their_covariance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.calibration.input_moments.MEMORY", 0)
    layer, qparams, moments = wide_layer(tmp_path)
    expected = compensate(layer, qparams, moments)
    monkeypatch.setattr(rounding, "few_rows", lambda rows, width: True)
    found = compensate(layer, qparams, moments)
    np.testing.assert_array_equal(found.weight_levels, expected.weight_levels)
    assert (few_rows(128, 1024), few_rows(129, 1024)) == (True, False)


def wide_layer(folder: Path, *, spoilt: bool = False) -> tuple[nn.Module, LayerQParams, Moments]:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, padding=1, groups=2)
    weight = layer.weight.detach().numpy()
    scale = np.abs(weight).reshape(6, -1).max(1).astype(np.float32) / 7
    qparams = LayerQParams(
        "wide",
        "conv2d",
        weight.shape,
        fingerprint(weight),
        scale,
        np.ones(1, np.float32) * 0.05,
        weight_bits=4,
    )
    layers = {"wide": layer}
    path = folder / "0.rows"
    sampler = MomentSampler(layers, plan_rows(layers, 4), 0, path)
    x = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(2)) + 1
    with sampler.watch():
        for image in x:
            layer(image[None] * (float("nan") if spoilt else 1.0))
    return layer, qparams, moments_of("wide", layer, [(sampler.finish(), path)])


def test_a_layer_is_rounded_by_a_factor_in_files_as_by_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.calibration.input_moments.MEMORY", 0)
    layer, qparams, moments = wide_layer(tmp_path / "one")
    expected = compensate(layer, qparams, moments)
    monkeypatch.setattr(rounding, "PRECISE_WIDTH", 20)  # its groups have 36 inputs
    monkeypatch.setattr(rounding, "_OUTPUTS", 2)
    monkeypatch.setattr(filed_factor, "_PANEL", 10)
    layer, qparams, moments = wide_layer(tmp_path / "two")
    found = compensate(layer, qparams, moments)
    assert expected.weight_levels is not None
    assert found.weight_levels is not None
    assert np.mean(found.weight_levels != expected.weight_levels) < 0.02
    assert found.bias_correction is not None
    assert expected.bias_correction is not None
    np.testing.assert_allclose(found.bias_correction, expected.bias_correction, atol=0.02)
    assert not list((tmp_path / "two").rglob("*.panel")), "what a factor left is removed"


def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.calibration.input_moments.MEMORY", 0)
    monkeypatch.setattr(rounding, "PRECISE_WIDTH", 20)
    layer, qparams, moments = wide_layer(tmp_path / "rows", spoilt=True)
    with pytest.raises(CalibrationError, match=r"'wide'.*no factor"):
        compensate(layer, qparams, moments)
