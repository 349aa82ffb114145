"""A gain and a shift of a layer's output, and the weight scale and bias that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration.output_correction import OutputCorrection, corrected
from accuquant.groups import StepGroups
from accuquant.networks.network import layer_kind, weight_of
from accuquant.networks.simulate import ActiveGroup, QuantizedLayer
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint

GROUPS = StepGroups((1000, 0))
LAYERS = {
    "conv": lambda: nn.Conv2d(3, 5, 3, padding=1),
    "conv without bias": lambda: nn.Conv2d(3, 5, 1, bias=False),
    "transposed conv": lambda: nn.ConvTranspose2d(3, 5, 2),
    "grouped transposed conv": lambda: nn.ConvTranspose2d(3, 15, 2, groups=3),
    "linear": lambda: nn.Linear(3, 5),
}


def qparams_of(layer: nn.Module, **changes: Any) -> LayerQParams:
    kind, weight = layer_kind(layer), weight_of(layer).detach().numpy()
    assert kind is not None
    channels = weight.shape[WEIGHT_AXIS[kind]]
    fields: dict[str, Any] = {"weight_scale": np.linspace(0.05, 0.1, channels, dtype=np.float32)}
    return LayerQParams(
        name="layer", kind=kind, weight_shape=weight.shape, fingerprint=fingerprint(weight),
        activation_scale=np.array([0.01], np.float32), weight_bits=4, **(fields | changes),
    )  # fmt: skip


def quantized(layer: nn.Module, qparams: LayerQParams) -> QuantizedLayer:
    import copy

    return QuantizedLayer(copy.deepcopy(layer), qparams, ActiveGroup(GROUPS))


def input_for(layer: nn.Module) -> Tensor:
    shape = (2, 7, 3) if isinstance(layer, nn.Linear) else (2, 3, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def randomized(correction: OutputCorrection) -> OutputCorrection:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        correction.log_gain.normal_(0, 0.2, generator=generator)
        correction.shift.normal_(0, 0.5, generator=generator)
    return correction


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias_corrected", [False, True])
def test_a_folded_correction_computes_the_same(kind: str, bias_corrected: bool) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), None
    outputs = 15 if kind.startswith("grouped") else 5
    bias = np.arange(outputs, dtype=np.float32) if bias_corrected else None
    qparams = qparams_of(layer, bias_correction=bias)
    before = quantized(layer, qparams)
    x = input_for(layer)
    with corrected({"layer": before}) as corrections, torch.no_grad():
        before(x)  # sets the unit of the shift
        wanted = randomized(corrections["layer"])(before.forward(x))
        assert torch.equal(before(x), wanted)
    folded = corrections["layer"].fold(qparams, before, layer)
    with torch.no_grad():
        torch.testing.assert_close(quantized(layer, folded)(x), wanted, atol=1e-5, rtol=1e-5)
        assert (before(x) - wanted).abs().max() > 0.1  # outside the block nothing is corrected
    assert np.array_equal(
        folded.quantized_weight(weight_of(layer).detach().numpy()),
        qparams.quantized_weight(weight_of(layer).detach().numpy()),
    )
    assert np.array_equal(folded.activation_scale, qparams.activation_scale)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_correction_is_neutral_at_first(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    plain = quantized(layer, qparams_of(layer))
    x = input_for(layer)
    with torch.no_grad():
        wanted = plain(x)
        with corrected({"layer": plain}):
            assert torch.equal(plain(x), wanted)


def test_the_shift_counts_in_the_size_of_the_outputs() -> None:
    layer = nn.Linear(1, 2)
    correction = OutputCorrection(quantized(layer, qparams_of(layer)))
    with torch.no_grad():
        correction(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]))
        correction.shift.fill_(2.0)
        shifted = correction(torch.zeros(1, 2))
    torch.testing.assert_close(shifted, torch.full((1, 2), 2 * 12.5**0.5))
    assert not shifted.requires_grad


def test_outputs_of_zeros_do_not_stop_the_shift() -> None:
    layer = nn.Linear(1, 2)
    correction = OutputCorrection(quantized(layer, qparams_of(layer)))
    with torch.no_grad():
        correction(torch.zeros(4, 2))
        correction.shift.fill_(2.0)
        torch.testing.assert_close(correction(torch.zeros(1, 2)), torch.full((1, 2), 2.0))
