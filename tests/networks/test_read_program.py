from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from accuquant._util.facts import FactsError
from accuquant.networks.aten_program import AtenNetwork, Program, operation
from accuquant.networks.network import quantizable_layers
from accuquant.networks.read_program import read_program


class DcGan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.main(noise)
        return images


class Mixed(nn.Module):
    """Normalized weights, a scaled weight, attention, interpolation, a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = spectral_norm(nn.Linear(6, 8 * 4 * 4))
        self.conv = weight_norm(nn.Conv2d(8, 8, 3, padding="same"))
        self.norm = nn.GroupNorm(2, 8)
        self.scaled = nn.Parameter(torch.randn(3, 8, 3, 3))

    def forward(self, latents: Tensor) -> Tensor:
        x = self.expand(latents).view(-1, 8, 4, 4)
        x = torch.relu_(self.norm(self.conv(F.interpolate(self.conv(x), scale_factor=2.0))))
        rows = x.flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2).reshape(x.shape)
        return torch.tanh(F.conv2d(x, self.scaled * 0.1, padding=1) + torch.linspace(0, 1, 8))


def with_statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module.eval().requires_grad_(False)


@cache
def read_again(make: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, AtenNetwork]:
    module = with_statistics(make())
    program, tensors = read_program(module, torch.randn(2, *shape))
    return module, AtenNetwork(Program.from_dict(json.loads(json.dumps(program))), tensors).eval()


@pytest.mark.parametrize(("make", "shape"), [(DcGan, (6, 1, 1)), (Mixed, (6,))])
def test_a_program_computes_what_its_module_does_for_any_batch(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    module, network = read_again(make, *shape)
    latents = torch.randn(5, *shape)
    torch.testing.assert_close(network.compute(latents), module(latents), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        copy.deepcopy(network).compute(latents[:1]), module(latents[:1]), rtol=1e-4, atol=1e-5
    )


def test_layers_keep_their_names_and_norms_behind_them_are_folded() -> None:
    _, network = read_again(DcGan, 6, 1, 1)
    layers = quantizable_layers(network)
    assert list(layers) == ["main.0", "main.3", "main.7"]
    assert all(isinstance(layer, nn.ConvTranspose2d) and layer.bias is not None for layer in layers.values())
    assert not any("norm" in step.operation for step in network._program.steps)


def test_a_layer_that_is_called_twice_is_one_layer() -> None:
    _, network = read_again(Mixed, 6)
    assert list(quantizable_layers(network)) == ["expand", "conv", "conv2d"]
    assert [step.layer for step in network._program.steps if step.layer] == [
        "expand",
        "conv",
        "conv",
        "conv2d",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.relu_.default",
        "aten.rand.default",
        "aten.save.default",
        "os.system",
        "aten.relu.__class__",
    ],
)
def test_refuses_operations_that_do_more_than_compute(name: str) -> None:
    with pytest.raises(FactsError, match=r"none that computes tensors from tensors alone"):
        operation(name)


def program(**changes: Any) -> dict[str, Any]:
    step = {"name": "y", "operation": "aten.relu.default", "arguments": [{"value": "x"}]}
    return {"input": "x", "output": "y", "layers": {}, "steps": [{**step, **changes}]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"arguments": [{"value": "z"}]}, r"no value 'z' before it"),
        ({"arguments": [{"code": "z"}]}, r"argument \{'code': 'z'\}"),
        ({"arguments": [{"dtype": "os"}]}, r"argument \{'dtype': 'os'\}"),
        ({"arguments": [{"value": "x", "dtype": "bool"}]}, r"argument"),
        ({"layer": "main"}, r"no layer 'main'"),
        ({"name": "z"}, r"no value 'y'"),
    ],
)
def test_refuses_a_program_that_refers_to_nothing(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(FactsError, match=fault):
        Program.from_dict(program(**changes))


def test_refuses_tensors_that_are_missing_or_do_not_fit() -> None:
    layer = {"input": "x", "output": "y", "layers": {"a": {"kind": "linear"}}}
    made = Program.from_dict({**layer, "steps": [{"name": "y", "layer": "a", "arguments": [{"value": "x"}]}]})
    with pytest.raises(FactsError, match=r"no tensor 'a.weight'"):
        AtenNetwork(made, {})
    with pytest.raises(FactsError, match=r"kind 'linear' with a weight of shape \[2\]"):
        AtenNetwork(made, {"a.weight": torch.zeros(2)})
    with pytest.raises(FactsError, match=r"no tensor 'b'"):
        AtenNetwork(Program.from_dict(program(arguments=[{"tensor": "b"}])), {})
