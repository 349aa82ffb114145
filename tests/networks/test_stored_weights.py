"""Weights that stay in half precision, or off the device: the float32 network's products, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from accuquant.networks.network import float_weights, model_hash, quantizable_layers
from accuquant.networks.stored_weights import (
    StoredLayer,
    compute_in_float32,
    count_parameters,
    is_offloaded,
    named_weights,
    offload,
    widened,
)

HALVES = [torch.float16, torch.bfloat16]

LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(6, 5), (2, 3, 6)),
    (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    (lambda: nn.Linear(6, 5, bias=False), (4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, (3, 1), dilation=2, padding=(0, 1), bias=False), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, (2, 3), padding="same"), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 8)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
]


def half_and_float(half: torch.dtype, network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a network as diffusers loads it in half precision, and one with its values in float32."""
    stored = copy.deepcopy(network).requires_grad_(False)  # as load_source gives them: torch computes
    for tensor in (*stored.parameters(), *stored.buffers()):  # products with weights that learn otherwise
        tensor.data = tensor.data.to(half)
    return stored, copy.deepcopy(stored).float()


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own, of the float32 layer
@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("half", HALVES)
def test_a_layer_in_half_precision_computes_and_differentiates_as_its_float32_copy(
    make: Callable[[], nn.Module], shape: tuple[int, ...], half: torch.dtype
) -> None:
    torch.manual_seed(0)
    stored, plain = half_and_float(half, nn.Sequential(make()).requires_grad_(False))
    compute_in_float32(stored)
    (layer,) = quantizable_layers(stored).values()
    assert isinstance(layer, StoredLayer)
    assert layer.stored.dtype == half
    assert layer.weight.dtype == torch.float32
    xs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    outputs = [network(x.requires_grad_(True)) for network, x in zip((stored, plain), xs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(stored(xs[0]), plain(xs[1]))


@pytest.mark.parametrize("half", HALVES)
def test_a_unet_in_half_precision_is_its_float32_copy_under_every_name(
    make_unet: Callable[..., nn.Module], half: torch.dtype
) -> None:
    stored, plain = half_and_float(half, make_unet())
    compute_in_float32(stored)
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(stored(sample, 5).sample, plain(sample, 5).sample)
    assert stored.dtype == torch.float32  # what pipelines cast their inputs to
    assert model_hash(stored) == model_hash(plain)
    assert sorted(named_weights(stored)) == sorted(plain.state_dict())
    weights = float_weights(stored)
    assert list(weights) == list(float_weights(plain))
    assert all((weights[name] == weight).all() for name, weight in float_weights(plain).items())
    assert count_parameters(stored) == sum(p.numel() for p in plain.parameters())
    held = sum(t.nbytes for t in stored.state_dict().values())
    assert held < 0.6 * sum(t.nbytes for t in plain.state_dict().values())


def test_exporters_get_plain_layers_and_share_what_is_float32_already(
    make_unet: Callable[..., nn.Module],
) -> None:
    stored, plain = half_and_float(torch.bfloat16, make_unet())
    assert widened(plain) is plain
    compute_in_float32(stored)
    wide = widened(stored)
    assert not [m for m in wide.modules() if isinstance(m, StoredLayer)]
    assert [m for m in stored.modules() if isinstance(m, StoredLayer)], "the network itself stays as it is"
    assert {n: type(m) for n, m in wide.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    for name, tensor in plain.state_dict().items():
        assert torch.equal(wide.state_dict()[name], tensor), name
    norm = "down_blocks.0.resnets.0.norm1.weight"
    assert wide.get_parameter(norm).data_ptr() == stored.get_parameter(norm).data_ptr()


def test_weights_are_float32_where_nothing_is_in_half_precision() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compute_in_float32(network)
    assert type(network[0]) is nn.Linear
    assert list(network.state_dict()) == list(before)


def test_an_offloaded_weight_stays_when_the_network_moves() -> None:
    layer = nn.Linear(3, 2)
    place = layer.weight.data_ptr()
    network = nn.Sequential(layer, nn.LayerNorm(2))
    offload(network)
    offload(network)  # a second time changes nothing
    assert is_offloaded(network[0])
    assert not is_offloaded(network[1])
    x = torch.randn(4, 3)
    expected = functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    network.to("meta")
    assert layer.stored.device.type == "cpu"
    assert layer.stored.data_ptr() == place
    assert layer.bias.is_meta
    assert network[1].weight.is_meta


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Return the bytes of all tensors that a call keeps for its gradient."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output: Any = network(x)
        del output
    return sum(kept.values())


def test_a_gradient_keeps_nothing_of_a_weight_that_is_made_while_its_layer_runs() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(False)
    x = torch.randn(1, 64, requires_grad=True)
    assert saved_bytes(network, x) >= 2 * 64 * 64 * 4
    offload(network)
    assert saved_bytes(network, x) == 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_gradient_at_a_channels_last_input_is_the_float32_layer_s_to_the_last_bit(kernel: int) -> None:
    torch.manual_seed(0)
    stored, plain = half_and_float(
        torch.bfloat16, nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2))
    )
    plain.requires_grad_(False)
    compute_in_float32(stored)
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    gradients = []
    for network in (stored, plain):
        leaf = x.clone().requires_grad_(True)
        network(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
