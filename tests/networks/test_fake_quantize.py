"""Fake quantization against a numpy loop, against ONNX Runtime, and its gradients against formulas."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from accuquant.networks.fake_quantize import _FakeQuantize, fake_quantize, fake_quantize_fp8, round_to_grid

GRIDS = [(8, 0), (8, -128), (8, 127), (8, -37), (6, 0), (6, -20), (4, 0), (4, -8), (3, 2), (2, 0), (2, -2)]


def bounds(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def values(seed: int = 0, count: int = 700) -> npt.NDArray[np.float32]:
    """Random values, exact ties, and values far outside every range."""
    x = np.random.default_rng(seed).normal(0, 2, count).astype(np.float32)
    ties = (np.arange(-20, 20) + 0.5).astype(np.float32) * 0.25
    return np.concatenate([x, ties, np.array([0, -0.0, 1e6, -1e6, 1e-12], np.float32)])


def by_loop(x: npt.NDArray[np.float32], scale: float, zero_point: int, bits: int) -> npt.NDArray[np.float32]:
    qmin, qmax = bounds(bits)
    s = np.float32(scale)
    out = np.empty_like(x)
    for i, v in enumerate(x):
        q = min(max(round(float(v / s)) + zero_point, qmin), qmax)
        out[i] = np.float32(q - zero_point) * s
    return out


def by_onnxruntime(
    x: npt.NDArray[np.float32], scale: float, zero_point: int, bits: int
) -> npt.NDArray[np.float32]:
    """QuantizeLinear, Clip to the bits, DequantizeLinear."""
    qmin, qmax = bounds(bits)
    tensor = helper.make_tensor
    constants = [
        tensor("s", TensorProto.FLOAT, [], [scale]),
        tensor("z", TensorProto.INT8, [], [zero_point]),
        tensor("low", TensorProto.INT8, [], [qmin]),
        tensor("high", TensorProto.INT8, [], [qmax]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "low", "high"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize(("bits", "zero_point"), GRIDS)
@pytest.mark.parametrize("scale", [0.25, 0.0371, 1.7])
def test_equals_a_numpy_loop_and_onnxruntime(bits: int, zero_point: int, scale: float) -> None:
    x = values(bits)
    ours = fake_quantize(torch.from_numpy(x), torch.tensor(scale), zero_point, *bounds(bits)).numpy()
    assert np.array_equal(ours, by_loop(x, scale, zero_point, bits))
    assert np.array_equal(ours, by_onnxruntime(x, scale, zero_point, bits))


def test_leaves_its_input_alone_and_keeps_the_shape() -> None:
    x = torch.from_numpy(values()).reshape(5, 1, -1)
    before = x.clone()
    y = fake_quantize(x, torch.tensor(0.1), 0, -128, 127)
    assert y.shape == x.shape
    assert torch.equal(x, before)


@pytest.mark.parametrize("who", ["x", "scale", "both"])
def test_the_differentiable_path_computes_the_same(who: str) -> None:
    x, scale = torch.from_numpy(values()), torch.tensor(0.037)
    expected = fake_quantize(x, scale, -5, -128, 127)
    x.requires_grad_(who != "scale")
    scale.requires_grad_(who != "x")
    assert torch.equal(fake_quantize(x, scale, -5, -128, 127), expected)
    with torch.no_grad():
        assert torch.equal(fake_quantize(x, scale, -5, -128, 127), expected)


@pytest.mark.parametrize(
    ("x_learns", "scale_learns", "records", "differentiable"),
    [
        (True, True, True, True),
        (True, False, True, True),
        (False, True, True, True),
        (False, False, True, False),
        (True, True, False, False),
        (True, False, False, False),
        (False, True, False, False),
    ],
)
def test_only_what_has_a_gradient_to_record_pays_for_it(
    x_learns: bool,
    scale_learns: bool,
    records: bool,
    differentiable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    applied: list[Tensor] = []
    whole = _FakeQuantize.apply

    def apply(x: Tensor, *others: Any) -> Any:
        applied.append(x)
        return whole(x, *others)

    monkeypatch.setattr(_FakeQuantize, "apply", apply)
    x = torch.tensor([0.04, -9.0, 9.0], requires_grad=x_learns)
    scale = torch.tensor(0.05, requires_grad=scale_learns)
    with torch.set_grad_enabled(records):
        y = fake_quantize(x, scale, 0, -8, 7)
    assert len(applied) == differentiable
    assert y.requires_grad == differentiable
    if differentiable:
        y.sum().backward()
        assert x.grad is None or x.grad.tolist() == [1, 0, 0]
        assert (x.grad is not None, scale.grad is not None) == (x_learns, scale_learns)


@pytest.mark.parametrize(("bits", "zero_point"), GRIDS)
def test_the_gradient_is_the_published_formula_element_by_element(bits: int, zero_point: int) -> None:
    qmin, qmax = bounds(bits)
    x = torch.from_numpy(values(1, 150)[:-5]).requires_grad_()
    upstream = torch.linspace(-1, 2, x.numel())
    scale = torch.tensor(0.25, requires_grad=True)
    (fake_quantize(x, scale, zero_point, qmin, qmax) * upstream).sum().backward()

    assert x.grad is not None
    grad_scale = 0.0
    for v, up, got in zip(x.detach().numpy(), upstream.numpy(), x.grad.numpy(), strict=True):
        level = round(float(v) / 0.25)
        inside = qmin <= level + zero_point <= qmax
        assert got == (up if inside else 0.0)
        clamped = min(max(level, qmin - zero_point), qmax - zero_point)
        grad_scale += up * (clamped - float(v) / 0.25 if inside else clamped)
    assert scale.grad is not None
    assert scale.grad.shape == scale.shape
    assert scale.grad.item() == pytest.approx(grad_scale, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("bits", "zero_point"), GRIDS)
def test_the_gradient_is_the_slope_of_the_straight_through_surrogate(bits: int, zero_point: int) -> None:
    """The surrogate freezes what rounding adds, round(v) - v, where the gradient is taken."""
    qmin, qmax = bounds(bits)
    x = values(2, 60).astype(np.float64)
    x = x[(np.abs(x) < 100) & (np.abs(x / 0.31 - np.rint(x / 0.31)) < 0.49)]
    at = 0.31
    added = np.rint(x / at) - x / at

    def surrogate(v: npt.NDArray[np.float64], s: float) -> npt.NDArray[np.float64]:
        return s * np.clip(v / s + added, qmin - zero_point, qmax - zero_point)

    # on the bound itself the surrogate has a kink
    levels = np.rint(x / at)
    smooth = (levels != qmin - zero_point) & (levels != qmax - zero_point)
    x, added, h = x[smooth], added[smooth], 1e-6
    ours = torch.from_numpy(x).requires_grad_()
    scale = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    fake_quantize(ours, scale, zero_point, qmin, qmax).sum().backward()
    by_scale = (surrogate(x, at + h) - surrogate(x, at - h)).sum() / (2 * h)
    by_x = (surrogate(x + h, at) - surrogate(x - h, at)) / (2 * h)
    assert scale.grad is not None
    assert ours.grad is not None
    assert scale.grad.item() == pytest.approx(by_scale, rel=1e-6, abs=1e-5)
    assert np.allclose(ours.grad.numpy(), by_x, atol=1e-6)


def test_round_to_grid_rounds_half_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9.0])
    assert round_to_grid(x, torch.tensor(1.0), -2.0, 3.0).tolist() == [-2, -2, -0.0, 0, 2, 2, 3]


def test_descending_the_gradient_finds_the_best_scale() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))

    def error(scale: Tensor) -> Tensor:
        return (fake_quantize(x, scale, 0, -8, 7) - x).square().mean()

    grid = torch.linspace(0.05, 1.0, 400)
    best = min(error(s).item() for s in grid)
    log_scale = torch.tensor(0.0).requires_grad_()
    optimizer = torch.optim.Adam([log_scale], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        error(log_scale.exp()).backward()
        optimizer.step()
    assert error(log_scale.exp().detach()).item() < 1.02 * best


@pytest.mark.parametrize("scale", [0.25, 0.0371, 0.001])
def test_fp8_rounds_as_ml_dtypes_does_and_saturates(scale: float) -> None:
    x, step = values(), np.float32(scale)
    expected = np.clip(x / step, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    found = fake_quantize_fp8(torch.from_numpy(x), torch.tensor(step))
    np.testing.assert_array_equal(found.numpy(), expected)
    learning = fake_quantize_fp8(torch.from_numpy(x), torch.tensor(step, requires_grad=True))
    np.testing.assert_array_equal(learning.detach().numpy(), expected)


def test_fp8_passes_gradients_straight_through_and_learns_its_scale() -> None:
    x = torch.tensor([0.3, -7.7, 300.0, -9000.0], requires_grad=True)
    scale = torch.tensor(1.5, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (fake_quantize_fp8(x, scale) * weights).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    torch.testing.assert_close(x.grad, weights * torch.tensor([1.0, 1, 1, 0]))
    # 0.3 / 1.5 = 0.2 -> 0.203125, -7.7 / 1.5 = -5.1333 -> -5, 300 / 1.5 = 200 -> 208 or 192: 200 ties to 192
    levels = torch.tensor([0.203125, -5.0, 192.0, -448.0])
    slopes = levels - torch.tensor([0.2, -7.7 / 1.5, 200.0, 0.0])
    torch.testing.assert_close(scale.grad, (weights * slopes).sum())
