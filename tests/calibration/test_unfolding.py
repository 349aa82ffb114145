"""Layers as matrix products, against the derivative of their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration import unfolding
from accuquant.calibration.unfolding import (
    as_matrices,
    from_matrices,
    group_count,
    input_width,
    output_positions,
    random_rows,
)

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "plain": (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    "strided": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}),
    "uneven": (
        nn.Conv2d,
        {"kernel_size": (2, 3), "padding": (0, 2), "stride": (1, 2), "dilation": (2, 1)},
    ),
    "pointwise": (nn.Conv2d, {"kernel_size": 1}),
    "same": (nn.Conv2d, {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)}),
    "valid": (nn.Conv2d, {"kernel_size": 3, "padding": "valid"}),
    "circular": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "circular"}),
    "reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}),
    "replicate": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "replicate"}),
    "grouped": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "groups": 2}),
    "transposed": (nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "transposed uneven": (
        nn.ConvTranspose2d,
        {
            "kernel_size": (2, 3),
            "stride": (3, 2),
            "padding": (1, 2),
            "output_padding": (1, 0),
            "dilation": (2, 1),
        },
    ),
    "transposed grouped": (nn.ConvTranspose2d, {"kernel_size": 2, "stride": 2, "groups": 2}),
}


def make(name: str) -> nn.Module:
    kind, options = LAYERS[name]
    layer = kind(4, 6, **options)
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(index))
    return layer.double()


def rows_of(layer: nn.Module, x: Tensor) -> np.ndarray:
    """Return the derivatives of each group's first channel by its weights, at every output [N, G, d]."""
    outputs, weight = layer(x), layer.get_parameter("weight")
    groups = group_count(layer)
    first = range(0, outputs.shape[1], outputs.shape[1] // groups)
    rows = []
    for image, i, j in np.ndindex(len(x), *outputs.shape[2:]):
        found = []
        for group, channel in enumerate(first):
            (slope,) = torch.autograd.grad(outputs[image, channel, i, j], weight, retain_graph=True)
            if isinstance(layer, nn.ConvTranspose2d):
                inputs = len(slope) // groups
                found.append(slope[group * inputs : (group + 1) * inputs, 0].flatten().numpy())
            else:
                found.append(slope[channel].flatten().numpy())
        rows.append(np.stack(found))
    return np.stack(rows)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_what_the_outputs_change_with_the_weights(name: str) -> None:
    layer = make(name)
    x = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(3)).double()
    possible = rows_of(layer, x).reshape(-1, group_count(layer) * input_width(layer))
    assert output_positions(layer, x) == len(possible)
    rows = random_rows(layer, x, 1500, torch.Generator().manual_seed(0))
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, possible.tolist()))
    few = random_rows(layer, x, 7, torch.Generator().manual_seed(1))
    assert len(few) == 7
    assert set(map(tuple, few.tolist())) <= set(map(tuple, possible.tolist()))


@pytest.mark.parametrize("name", LAYERS)
def test_matrices_of_the_weight_times_rows_are_the_outputs(name: str) -> None:
    layer = make(name)
    x = torch.randn(1, 4, 4, 5).double()
    matrices = as_matrices(layer, layer.get_parameter("weight").detach())
    assert matrices.shape[2] == input_width(layer)
    products = np.einsum("god,ngd->ngo", matrices.numpy(), rows_of(layer, x))
    expected = layer(x)[0].flatten(1).T.detach() - layer.get_parameter("bias").detach()
    np.testing.assert_allclose(products.reshape(len(products), -1), expected.numpy(), atol=1e-12)
    assert torch.equal(from_matrices(layer, matrices), layer.get_parameter("weight"))


def test_rows_of_a_linear_layer_are_its_inputs() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(2, 5, 3)
    rows = random_rows(layer, x, 50, torch.Generator().manual_seed(0))
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, x.reshape(-1, 3).tolist()))
    assert (group_count(layer), input_width(layer)) == (1, 3)
    assert torch.equal(as_matrices(layer, layer.weight)[0], layer.weight)


@pytest.mark.parametrize("name", ["uneven", "grouped", "transposed grouped"])
def test_rows_that_are_gathered_in_parts_are_those_gathered_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make(name), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    whole = random_rows(layer, x, 50, torch.Generator().manual_seed(3))
    monkeypatch.setattr(unfolding, "_NUMBERS", 3 * whole.shape[1] + 1)
    assert torch.equal(random_rows(layer, x, 50, torch.Generator().manual_seed(3)), whole)
