"""What the layers see, and the qparams that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.networks.network import call, quantizable_layers
from accuquant.qparams import fingerprint

Samples = dict[str, list[npt.NDArray[np.float32]]]


def observed(network: nn.Module, names: list[str], seed: int = 0) -> tuple[Samples, dict[str, list[Tensor]]]:
    """Run the network in two groups of three calls; return the sample and all inputs."""
    sampler = ActivationSampler(names, [3, 3], seed)
    truth: dict[str, list[Tensor]] = {name: [] for name in names}
    layers = quantizable_layers(network)
    hooks = [
        layers[name].register_forward_pre_hook(lambda _m, args, n=name: truth[n].append(args[0].detach()))
        for name in names
    ]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), sampler.watch(network):
        for k in range(6):
            sampler.group = k // 3
            call(network, torch.randn(2, 1, 8, 8, generator=generator) * (1 + sampler.group), 10 * k)
    for hook in hooks:
        hook.remove()
    return sampler.samples(), truth


@pytest.fixture
def names(make_unet: Callable[..., nn.Module]) -> list[str]:
    return [name for name in quantizable_layers(make_unet()) if "attentions" in name or name == "conv_in"]


def test_a_sample_holds_real_values_and_both_extremes(
    make_unet: Callable[..., nn.Module], names: list[str]
) -> None:
    samples, truth = observed(make_unet(), names)
    assert list(samples) == names
    for name in names:
        for group in range(2):
            seen = torch.cat([x.flatten() for x in truth[name][3 * group : 3 * group + 3]]).numpy()
            kept = samples[name][group]
            assert kept.dtype == np.float32
            assert np.isin(kept, seen).all()
            assert (kept.min(), kept.max()) == (seen.min(), seen.max())


def test_a_sample_follows_the_distribution() -> None:
    sampler = ActivationSampler(["l"], [20], seed=0)
    values = torch.randn(20, 4, 5000, generator=torch.Generator().manual_seed(0)).exp()
    for x in values:
        sampler.observe("l", x)
    (kept,) = sampler.samples()["l"]
    assert 20_000 < len(kept) < 50_000
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert np.quantile(kept, share) == pytest.approx(np.quantile(values.numpy(), share), rel=0.1)
    # the extremes of every call would be too many
    assert np.mean(kept > 30) < 5 * np.mean(values.numpy() > 30)


def test_the_same_seed_draws_the_same_sample(make_unet: Callable[..., nn.Module], names: list[str]) -> None:
    first, again, other = (observed(make_unet(), names, seed)[0] for seed in (0, 0, 1))
    assert all(np.array_equal(first[n][g], again[n][g]) for n in names for g in (0, 1))
    assert not np.array_equal(first["conv_in"][0], other["conv_in"][0])


def test_watching_leaves_no_hook_behind(make_unet: Callable[..., nn.Module]) -> None:
    unet = make_unet()
    with pytest.raises(KeyError), ActivationSampler(["conv_in"], [1], 0).watch(unet):
        raise KeyError
    assert not unet.get_submodule("conv_in")._forward_pre_hooks


def test_layers_that_read_one_tensor_get_one_set_of_scales(
    make_unet: Callable[..., nn.Module], names: list[str]
) -> None:
    unet = make_unet()
    qparams = initial_qparams(unet, observed(unet, names)[0], weight_bits=8, activation_bits=8)
    scales = {name: layer.activation_scale.tobytes() for name, layer in qparams.items()}
    attention = "down_blocks.0.attentions.0"
    assert len({scales[f"{attention}.{name}"] for name in ("to_q", "to_k", "to_v")}) == 1
    assert len(set(scales.values())) == len(names) - 2


@pytest.mark.parametrize("affine", [True, False])
def test_qparams_describe_the_layer_and_its_groups(
    make_unet: Callable[..., nn.Module], names: list[str], affine: bool
) -> None:
    unet = make_unet()
    qparams = initial_qparams(
        unet, observed(unet, names)[0], weight_bits=4, activation_bits=6, observer="minmax", affine=affine
    )
    layers = quantizable_layers(unet)
    for name, layer in qparams.items():
        weight = layers[name].get_parameter("weight").detach().numpy()
        assert layer.kind == ("conv2d" if weight.ndim == 4 else "linear")
        assert layer.weight_shape == weight.shape
        assert layer.fingerprint == fingerprint(weight)
        assert (layer.weight_bits, layer.activation_bits) == (4, 6)
        assert layer.weight_scale.shape == (len(weight),)
        assert layer.activation_scale.shape == (2,)
        assert affine or layer.zero_point == 0
    # the second group saw inputs twice as large
    first, second = qparams["conv_in"].activation_scale
    assert 1.5 < second / first < 3


def test_one_sided_activations_get_a_zero_point() -> None:
    layer = nn.Linear(4, 4)
    root = nn.ModuleDict({"l": layer})
    values = torch.nn.functional.silu(torch.randn(20_000, generator=torch.Generator().manual_seed(0))).numpy()
    qparams = initial_qparams(root, {"l": [values]}, weight_bits=8, activation_bits=8)["l"]
    assert qparams.zero_point < -60
