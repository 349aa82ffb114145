"""A correction of the prediction, in whatever a network that was captured returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.groups import StepGroups
from accuquant.networks.call_form import CallForm, Place
from accuquant.networks.network import call, remember_call
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.networks.simulate import correct_predictions
from accuquant.prediction_correction import PredictionCorrection

SHAPE = ("batch", 3, 2, 2)


class Doubling(nn.Module):
    """Returns twice its input, in one of the forms that networks of diffusers have."""

    def __init__(self, output: Place) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, timestep: Tensor) -> Any:
        made = self.output.dressed(2 * x)
        return (made, "more") if self.output.path else made


@pytest.mark.parametrize("output", [Place(()), Place((0,)), Place((), rows=True), Place((0,), rows=True)])
def test_every_row_is_corrected_by_channel(output: Place) -> None:
    network = Doubling(output)
    form = CallForm({"x": Place(("x",)), "timestep": Place(("timestep",))}, output)
    spec, time = TensorSpec("x", SHAPE), TensorSpec("timestep", ("steps",))
    remember_call(
        network,
        Signature(
            "Doubling", spec, time, (), TensorSpec("out_x", SHAPE), {"batch": 1, "steps": 1}, call=form
        ),
    )
    factor, bias = np.array([[0.5, 2.0, 3.0]], np.float32), np.array([[1.0, 0.0, -1.0]], np.float32)
    correct_predictions(network, PredictionCorrection(StepGroups((1000.0, 0.0)), factor, bias))
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    expected = (2 * x.numpy() - bias.reshape(1, 3, 1, 1)) * factor.reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(call(network, x, 500.0).numpy(), expected)
