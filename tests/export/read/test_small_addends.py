"""Constants that guard a division against zero, in a traced graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from accuquant.export.read.trace import trace_module


class _Guarded(nn.Module):
    """Divides as linear attention does: by a sum that may be zero, and a guard."""

    guard: Tensor

    def __init__(self, guard: float, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("guard", torch.tensor(guard))
        self.value = guard

    def forward(self, x: Tensor) -> Tensor:
        total = x.relu().sum(-1, keepdim=True)
        below = {
            "number": lambda: total + self.value,
            "number first": lambda: self.value + total,
            "tensor": lambda: total + self.guard,
            "difference": lambda: total - -self.value,
        }[self.form]()
        return x.relu() / below


@pytest.mark.parametrize(
    "form",
    [
        "number",
        pytest.param("number first", marks=pytest.mark.slow),
        "tensor",
        pytest.param("difference", marks=pytest.mark.slow),
    ],
)
def test_a_division_by_a_guarded_zero_is_zero_in_the_graph(form: str, tmp_path: Path) -> None:
    """onnxscript's optimizer takes 1e-15 for 0, and removes its addition: 0 / 0 would be no number."""
    x = torch.tensor([[-1.0, -2.0, -3.0], [1.0, -2.0, 3.0]])
    model = trace_module(
        _Guarded(1e-15, form), (x,), None, inputs=["x"], outputs=["y"], opset=21, name="guarded"
    )
    ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    (y,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, np.array([[0, 0, 0], [0.25, 0, 0.75]]), rtol=1e-6)


def test_an_addition_of_zero_is_removed_all_the_same() -> None:
    model = trace_module(
        _Guarded(0.0, "number"), (torch.ones(1, 3),), None, inputs=["x"], outputs=["y"], opset=21, name="zero"
    )
    assert "Add" not in {node.op_type for node in model.graph}
