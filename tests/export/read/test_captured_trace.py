"""A traced graph of a network that was captured: what torch makes constants of."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from accuquant.errors import ExportError
from accuquant.export.read.trace import trace
from accuquant.networks.call_form import CallForm, Place
from accuquant.networks.network import call, remember_call
from accuquant.networks.signature import Signature, TensorSpec

_SHAPE = ("batch", 3, 4)
SIGNATURE = Signature(
    "Counting",
    TensorSpec("x", _SHAPE),
    TensorSpec("timestep", ("steps",)),
    (),
    TensorSpec("out_x", _SHAPE),
    {"batch": 1, "steps": 1},
    call=CallForm({"x": Place(("x",)), "timestep": Place(("timestep",))}, Place(())),
)


class Counting(nn.Module):
    """Makes a list of as many numbers as the timestep, or the sample, has rows, as Chroma does."""

    def __init__(self, *, of_timestep: bool) -> None:
        super().__init__()
        self.of_timestep = of_timestep
        self.look = nn.Linear(4, 4)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        rows = timestep.shape[0] if self.of_timestep else x.shape[0]
        shift: Tensor = torch.tensor([0.5] * rows) + timestep
        return self.look(x) * shift[:, None, None]


@pytest.mark.slow
def test_a_timestep_whose_rows_are_counted_is_one_row_in_the_graph(tmp_path: Path) -> None:
    network = Counting(of_timestep=True)
    remember_call(network, SIGNATURE)
    ir.save(trace(network, SIGNATURE), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        x = torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(rows))
        (y,) = session.run(None, {"x": x.numpy(), "timestep": torch.tensor([7.0]).numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), call(network, x, 7.0))


def test_a_network_that_counts_the_rows_of_its_sample_is_refused() -> None:
    network = Counting(of_timestep=False)
    remember_call(network, SIGNATURE)
    with pytest.raises(ExportError, match=r"network Counting: got a computation that is made for one size"):
        trace(network, SIGNATURE)
