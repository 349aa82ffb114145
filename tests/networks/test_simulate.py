"""The simulated network: layers that compute what an engine computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from accuquant.errors import RecipeError, UsageError
from accuquant.groups import StepGroups
from accuquant.networks.fake_quantize import fake_quantize
from accuquant.networks.network import call, float_weights, model_hash, signature_of
from accuquant.networks.simulate import (
    ActiveGroup,
    QuantizedLayer,
    quantize_network,
    quantized_layers,
    simulate,
)
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe

GROUPS = StepGroups((1000, 500, 0))
KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.ConvTranspose2d: "conv_transpose2d",
}


def qparams_of(
    name: str, layer: nn.Module, scales: tuple[float, ...] = (0.05, 0.02), **changes: Any
) -> LayerQParams:
    weight: npt.NDArray[np.float32] = layer.get_parameter("weight").detach().numpy()
    kind = KINDS[type(layer)]
    count = weight.shape[WEIGHT_AXIS[kind]]
    return LayerQParams(
        name,
        kind,
        weight.shape,
        fingerprint(weight),
        np.linspace(0.001, 0.004, count, dtype=np.float32),
        np.array(scales, np.float32),
        **changes,
    )


def by_hand(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    s = np.float32(scale)
    q = np.clip(np.rint(x.numpy() / s) + zero_point, qmin, qmax)
    return torch.from_numpy((q - zero_point).astype(np.float32) * s)


def weight_by_hand(qparams: LayerQParams, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    qmin, qmax = -(2 ** (qparams.weight_bits - 1)), 2 ** (qparams.weight_bits - 1) - 1
    channels = np.moveaxis(weight, qparams.axis, 0)
    rows = [
        np.clip(np.rint(channel / s), qmin, qmax) * s
        for channel, s in zip(channels, qparams.weight_scale, strict=True)
    ]
    return np.moveaxis(np.stack(rows), 0, qparams.axis).astype(np.float32)


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor, Tensor, Any], Tensor]]] = [
    (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        (2, 4, 8, 8),
        lambda x, w, b: functional.conv2d(x, w, b, stride=2, padding=1, groups=2),
    ),
    (
        lambda: nn.Conv2d(4, 6, 1, bias=False),
        (2, 4, 3, 3),
        lambda x, w, b: functional.conv2d(x, w, b),
    ),
    (lambda: nn.Linear(5, 3), (2, 7, 5), functional.linear),
    (
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
        (2, 4, 5, 5),
        lambda x, w, b: functional.conv_transpose2d(x, w, b, stride=2),
    ),
]


@pytest.mark.parametrize(("make", "shape", "run"), LAYERS)
@pytest.mark.parametrize(
    ("zero_point", "activation_bits", "weight_bits"), [(0, 8, 8), (-100, 8, 4), (3, 4, 3)]
)
def test_a_layer_runs_on_quantized_input_and_weight(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    run: Callable[..., Tensor],
    zero_point: int,
    activation_bits: int,
    weight_bits: int,
) -> None:
    torch.manual_seed(0)
    layer = make()
    weight = layer.get_parameter("weight").detach().numpy().copy()
    qparams = qparams_of(
        "l", layer, zero_point=zero_point, activation_bits=activation_bits, weight_bits=weight_bits
    )
    active = ActiveGroup(GROUPS)
    quantized = QuantizedLayer(copy.deepcopy(layer), qparams, active)
    x = torch.randn(shape)
    for group, scale in enumerate((0.05, 0.02)):
        active.index = group
        expected = run(
            by_hand(x, scale, zero_point, activation_bits),
            torch.from_numpy(weight_by_hand(qparams, weight)),
            layer.bias,
        )
        torch.testing.assert_close(quantized(x), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(quantized.weight.numpy(), weight_by_hand(qparams, weight))


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_correction_is_added_to_the_bias(bias: bool) -> None:
    layer = nn.Linear(5, 3, bias=bias)
    correction = np.array([0.5, -0.25, 0.0], np.float32)
    plain = QuantizedLayer(copy.deepcopy(layer), qparams_of("l", layer), ActiveGroup(GROUPS))
    corrected = QuantizedLayer(
        copy.deepcopy(layer), qparams_of("l", layer, bias_correction=correction), ActiveGroup(GROUPS)
    )
    x = torch.randn(4, 5)
    torch.testing.assert_close(corrected(x), plain(x) + torch.from_numpy(correction))


@pytest.mark.parametrize("timestep", [700, 700.0, torch.tensor(700), torch.tensor([700, 700])])
def test_the_timestep_selects_the_group(timestep: float | Tensor) -> None:
    active = ActiveGroup(GROUPS)
    active.index = 1
    active.select(timestep)
    assert active.index == 0
    active.select(499)
    assert active.index == 1


def test_refuses_two_timesteps_in_one_batch() -> None:
    with pytest.raises(RecipeError, match=r"one timestep for the whole batch"):
        ActiveGroup(GROUPS).select(torch.tensor([700, 20]))


def test_refuses_a_timestep_that_was_not_calibrated() -> None:
    with pytest.raises(UsageError, match=r"outside the calibrated range"):
        ActiveGroup(GROUPS).select(torch.tensor(1001))


class TwoLayers(nn.Module):
    """A network with a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.block = nn.Sequential(nn.SiLU(), nn.Linear(4, 4))

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> tuple[Tensor]:
        return (self.block(self.conv(sample)),)


@pytest.fixture
def network() -> TwoLayers:
    torch.manual_seed(1)
    return TwoLayers()


def both(network: TwoLayers, **changes: Any) -> list[LayerQParams]:
    return [
        qparams_of("conv", network.conv),
        qparams_of("block.1", network.block[1], (0.03, 0.04), **changes),
    ]


def test_the_original_network_stays_as_it_was(network: TwoLayers) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantized = quantize_network(network, both(network), GROUPS)
    quantized(torch.randn(1, 2, 4, 4), 3)
    assert set(quantized_layers(quantized)) == {layer.name for layer in both(network)}
    assert not quantized_layers(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_deep_copy_selects_its_own_group(network: TwoLayers) -> None:
    original = quantize_network(network, both(network), GROUPS)
    copied = copy.deepcopy(original)
    original(torch.randn(1, 2, 4, 4), 0.0)
    for timestep in (900.0, 0.0):
        copied(torch.randn(1, 2, 4, 4), timestep)
        groups = {layer.active.index for layer in quantized_layers(copied).values()}
        assert groups == {GROUPS.find(timestep)}


def test_only_the_log_scales_are_trainable(network: TwoLayers) -> None:
    quantized = quantize_network(network, both(network), GROUPS)
    assert list(quantized_layers(quantized)) == ["conv", "block.1"]
    trainable = {name for name, p in quantized.named_parameters() if p.requires_grad}
    assert trainable == {"conv.log_scale", "block.1.log_scale"}
    assert not quantized.training


@pytest.mark.parametrize("as_keyword", [False, True])
def test_a_call_selects_the_group_by_its_timestep(network: TwoLayers, as_keyword: bool) -> None:
    quantized = quantize_network(network, both(network), GROUPS)
    x = torch.randn(1, 2, 4, 4)
    outputs = []
    for timestep in (900, 100):
        if as_keyword:
            outputs.append(quantized(sample=x, timestep=timestep)[0])
        else:
            outputs.append(quantized(x, torch.tensor(timestep))[0])
    conv = network.conv
    for output, first, second in zip(outputs, (0.05, 0.02), (0.03, 0.04), strict=True):
        middle = functional.conv2d(
            by_hand(x, first, 0, 8),
            torch.from_numpy(weight_by_hand(both(network)[0], conv.weight.detach().numpy())),
            conv.bias,
        )
        linear = network.block[1]
        assert isinstance(linear, nn.Linear)
        expected = functional.linear(
            by_hand(functional.silu(middle).detach(), second, 0, 8),
            torch.from_numpy(weight_by_hand(both(network)[1], linear.weight.detach().numpy())),
            linear.bias,
        )
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("as_keyword", [True, False])
def test_the_group_follows_the_scheduler_where_the_network_has_another_unit(as_keyword: bool) -> None:
    class FluxTransformer2DModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, hidden_states: Tensor, text: Tensor | None = None, timestep: Any = None) -> Tensor:
            output: Tensor = self.layer(hidden_states)
            return output

    network = FluxTransformer2DModel()
    simulated = quantize_network(network, [qparams_of("layer", network.layer)], GROUPS)
    layer = quantized_layers(simulated)["layer"]
    for sigma, group in ((0.75, 0), (0.25, 1)):
        timestep = torch.full((2,), sigma)
        if as_keyword:
            simulated(torch.ones(2, 4), timestep=timestep)
        else:
            simulated(torch.ones(2, 4), None, timestep)
        assert layer.active.index == group


def test_layers_with_one_set_of_scales_share_them(network: TwoLayers) -> None:
    layers = [qparams_of("conv", network.conv), qparams_of("block.1", network.block[1])]
    first, second = quantized_layers(quantize_network(network, layers, GROUPS)).values()
    assert first.log_scale is second.log_scale
    first.set_scale(1, 0.5)
    assert second.scale_of(1) == 0.5
    apart = quantized_layers(quantize_network(network, both(network, zero_point=1), GROUPS)).values()
    assert len({id(layer.log_scale) for layer in apart}) == 2


def test_the_scale_is_the_very_one_of_the_recipe_until_something_is_learned(network: TwoLayers) -> None:
    (layer, _) = quantized_layers(quantize_network(network, both(network), GROUPS)).values()
    layer.active.index = 1
    assert layer.current_scale().item() == np.float32(0.02)
    assert not layer.current_scale().requires_grad
    layer.learning = True
    assert layer.current_scale().item() == pytest.approx(0.02)
    assert layer.current_scale().requires_grad


def test_commit_makes_the_learned_scale_the_one_that_is_used(network: TwoLayers) -> None:
    (layer, _) = quantized_layers(quantize_network(network, both(network), GROUPS)).values()
    layer.learning = True
    with torch.no_grad():
        layer.log_scale.add_(torch.tensor([0.3, 0.4]))
    learned = layer.log_scale.detach().exp()[0].item()
    for _ in range(20):  # layers that share scales commit the same one again
        layer.commit(0)
    assert layer.scale_of(0) == learned
    assert layer.current_scale().item() == learned
    assert layer.scale_of(1) == np.float32(0.02)
    assert layer.learned_qparams().activation_scale.tolist() == [learned, np.float32(0.02)]


def test_revert_forgets_what_was_learned(network: TwoLayers) -> None:
    (layer, _) = quantized_layers(quantize_network(network, both(network), GROUPS)).values()
    start = layer.log_scale.detach().clone()
    with torch.no_grad():
        layer.log_scale[1] = float("nan")
    layer.revert(1)
    torch.testing.assert_close(layer.log_scale.detach(), start)
    assert layer.scale_of(1) == np.float32(0.02)


def recipe_for(unet: nn.Module, layers: list[LayerQParams]) -> Recipe:
    return Recipe(GROUPS, {q.name: q for q in layers}, signature_of(unet), {}, model_hash(unet))


def test_a_simulated_unet_equals_hooks_that_quantize_by_hand(make_unet: Callable[..., nn.Module]) -> None:
    unet = make_unet()
    modules = dict(unet.named_modules())
    names = [name for name in float_weights(unet) if "conv_in" not in name]
    layers = [
        qparams_of(name, modules[name], (0.02 + 0.001 * i, 0.03), zero_point=-i, weight_bits=6)
        for i, name in enumerate(names)
    ]
    reference = copy.deepcopy(unet).requires_grad_(False)
    copies = dict(reference.named_modules())
    for qparams in layers:
        layer = copies[qparams.name]
        layer.weight = nn.Parameter(
            torch.from_numpy(weight_by_hand(qparams, layer.weight.numpy())),
            requires_grad=False,
        )
        layer.register_forward_pre_hook(
            lambda _m, args, q=qparams: (by_hand(args[0], q.activation_scale[0], q.zero_point, 8),)
        )
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    simulated = simulate(unet, recipe_for(unet, layers))
    with torch.no_grad():
        expected = call(reference, sample, 700)
        assert torch.equal(call(simulated, sample, 700), expected)
        assert not torch.allclose(call(unet, sample, 700), expected, atol=1e-3)


def test_simulate_refuses_another_checkpoint(make_unet: Callable[..., nn.Module]) -> None:
    unet = make_unet()
    name, layer = next((n, m) for n, m in unet.named_modules() if isinstance(m, nn.Linear))
    recipe = recipe_for(unet, [qparams_of(name, layer)])
    assert len(quantized_layers(simulate(unet, recipe))) == 1
    with pytest.raises(RecipeError, match=r"calibrated from another checkpoint"):
        simulate(make_unet(seed=1), recipe)


def place(tensor: Tensor | None) -> int:
    assert tensor is not None
    return tensor.untyped_storage().data_ptr()


def test_a_simulated_network_shares_every_float_tensor_and_holds_no_float_copy_of_a_weight(
    make_unet: Callable[..., nn.Module],
) -> None:
    unet = make_unet()
    modules = dict(unet.named_modules())
    names = [name for name in float_weights(unet) if "conv_in" not in name]
    simulated = quantize_network(unet, [qparams_of(name, modules[name]) for name in names], GROUPS)
    floats, held = unet.state_dict(), simulated.state_dict()
    shared = [name for name in floats if name in held]
    assert {f"{name}.weight" for name in names}.isdisjoint(held)
    assert {*floats} - {*shared} == {f"{name}.weight" for name in names}
    for name in shared:
        assert place(held[name]) == place(floats[name]), name
    own = sum(t.nbytes for name, t in held.items() if name not in shared)
    assert own < 0.35 * sum(floats[f"{name}.weight"].nbytes for name in names)


def test_learned_levels_are_held_once_in_the_memory_of_the_qparams(network: TwoLayers) -> None:
    levels = np.ones((4, 4), np.int8)
    read_only = np.ones((2, 2, 1, 1), np.int8)
    read_only.flags.writeable = False
    qparams = [
        qparams_of("conv", network.conv, weight_levels=read_only),
        qparams_of("block.1", network.block[1], weight_levels=levels),
    ]
    layers = quantized_layers(quantize_network(network, qparams, GROUPS))
    assert layers["block.1"].levels.data_ptr() == levels.ctypes.data
    assert layers["conv"].levels.data_ptr() == read_only.ctypes.data


@pytest.mark.parametrize(("make", "shape", "run"), LAYERS)
def test_gradients_are_those_of_a_layer_that_keeps_its_dequantized_weight(
    make: Callable[[], nn.Module], shape: tuple[int, ...], run: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    layer = make().requires_grad_(False)
    qparams = qparams_of("l", layer)
    quantized = QuantizedLayer(layer, qparams, ActiveGroup(GROUPS))
    quantized.learning = True
    x = torch.randn(shape, requires_grad=True)
    same, log_scale = x.detach().clone().requires_grad_(True), torch.tensor(np.log(np.float32(0.05)))
    log_scale.requires_grad_(True)
    kept = torch.from_numpy(weight_by_hand(qparams, layer.get_parameter("weight").numpy()))
    expected = run(fake_quantize(same, log_scale.exp(), 0, -128, 127), kept, layer.bias)
    output = quantized(x)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-6, atol=1e-6)
    assert quantized.log_scale.grad is not None
    torch.testing.assert_close(quantized.log_scale.grad[0], log_scale.grad, rtol=1e-5, atol=1e-6)
