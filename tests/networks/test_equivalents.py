"""Forwards of fixed shapes against diffusers' own, which cut rows to their lengths in Python."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tiny_image_transformers import qwen_network, z_image_network
from tiny_pipelines import lumina_network
from torch import Tensor, nn

from accuquant.errors import SourceError, UsageError
from accuquant.networks.call_tensors import bound_arguments
from accuquant.networks.complex_in_reals import ComplexPair, complex_in_reals
from accuquant.networks.equivalents import EQUIVALENTS, fixed_shapes, idle_layers
from accuquant.networks.network import quantizable_layers


def predicted(network: nn.Module, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what the network predicts for a pipeline's arguments, and what its equivalent does."""
    named = bound_arguments(inspect.signature(network.forward), (), given, type(network).__name__)
    with torch.no_grad():
        own = network(**given)[0]
        with fixed_shapes(network):
            ours = network(**named)[0]
    assert "forward" not in vars(network)
    return ours, torch.stack(own) if isinstance(own, list) else own


def some(*shape: int) -> Tensor:
    """Return the same random numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def mask(lengths: list[int], longest: int) -> Tensor:
    """Return ones for as many tokens as each row has."""
    return (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()


@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 4, 1], [3, 5, 2]])
def test_lumina_2_with_padded_captions_predicts_the_same(lengths: list[int]) -> None:
    given = {
        "hidden_states": some(3, 4, 8, 12), "timestep": torch.full((3,), 0.3),
        "encoder_hidden_states": some(3, 9, 16), "encoder_attention_mask": mask(lengths, 9),
        "return_dict": False,
    }  # fmt: skip
    ours, own = predicted(lumina_network(), given)
    torch.testing.assert_close(ours, own, rtol=0, atol=5e-6)


@pytest.mark.parametrize("lengths", [None, [9, 4]])
@pytest.mark.parametrize("clean", [False, True])
def test_qwen_image_with_padded_prompts_and_an_edited_image_predicts_the_same(
    lengths: list[int] | None, clean: bool
) -> None:
    given = {
        "hidden_states": some(2, 4 * 6 + 3 * 5, 16), "timestep": torch.full((2,), 0.3),
        "encoder_hidden_states": some(2, 9, 16), "img_shapes": [[(1, 4, 6), (1, 3, 5)]] * 2,
        "encoder_hidden_states_mask": None if lengths is None else mask(lengths, 9),
        "guidance": None, "attention_kwargs": {}, "return_dict": False,
    }  # fmt: skip
    ours, own = predicted(qwen_network(zero_cond_t=clean), given)
    torch.testing.assert_close(ours, own, rtol=0, atol=5e-6)


@pytest.mark.parametrize("lengths", [[32, 32], [5, 33, 40]])
@pytest.mark.parametrize("height", [8, 16])
def test_z_image_on_a_batch_predicts_what_it_does_on_lists(lengths: list[int], height: int) -> None:
    given = {
        "x": list(some(len(lengths), 4, 1, height, 8)), "t": torch.full((len(lengths),), 0.3),
        "cap_feats": [some(length, 16) for length in lengths], "return_dict": False,
    }  # fmt: skip
    ours, own = predicted(z_image_network(), given)
    torch.testing.assert_close(ours, own, rtol=0, atol=5e-6)


def test_layers_are_idle_whose_weights_the_prediction_does_not_depend_on() -> None:
    network = qwen_network()
    given = {
        "hidden_states": some(1, 24, 16), "timestep": torch.full((1,), 0.3),
        "encoder_hidden_states": some(1, 9, 16), "img_shapes": [[(1, 4, 6)]],
    }  # fmt: skip
    linear = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    weights = [layer.weight for layer in linear.values()]
    gradients = torch.autograd.grad(network(**given).sample.sum(), weights, allow_unused=True)
    unread = {name for name, gradient in zip(linear, gradients, strict=True) if gradient is None}
    assert unread == idle_layers(network) != set()
    assert set(quantizable_layers(network)) == set(linear) - unread


def test_images_of_several_sizes_in_a_batch_are_refused() -> None:
    given = {"encoder_hidden_states": some(2, 9, 16), "img_shapes": [[(1, 4, 6)], [(1, 6, 4)]]}
    with pytest.raises(UsageError, match="'img_shapes' of the network: got images of several sizes in one"):
        EQUIVALENTS["QwenImageTransformer2DModel"].arguments(given)


def test_what_an_equivalent_does_not_compute_is_refused_by_name() -> None:
    network = qwen_network(use_layer3d_rope=True)
    given = {
        "hidden_states": some(1, 24, 16), "timestep": torch.full((1,), 0.3),
        "encoder_hidden_states": some(1, 9, 16), "img_shapes": [[(1, 4, 6)]],
    }  # fmt: skip
    with pytest.raises(SourceError, match=r"positions of layers \(use_layer3d_rope\)"):
        predicted_by_equivalent(network, given)
    with pytest.raises(SourceError, match=r"got guidance among its arguments"):
        predicted_by_equivalent(qwen_network(), given | {"guidance": torch.ones(1)})
    with pytest.raises(SourceError, match=r"several images a row \(Z-Image-Omni\)"):
        EQUIVALENTS["ZImageTransformer2DModel"].arguments({"x": [[some(4, 1, 8, 8)]], "cap_feats": [[]]})


def predicted_by_equivalent(network: nn.Module, given: dict[str, Any]) -> Tensor:
    """Return what the equivalent predicts."""
    with fixed_shapes(network):
        prediction: Tensor = network(**EQUIVALENTS[type(network).__name__].arguments(given)).sample
    return prediction


def test_a_product_of_pairs_is_that_of_complex_numbers() -> None:
    x, y = some(2, 3, 4), some(2, 3, 4) * 0.5 + 1
    expected = torch.view_as_real(
        torch.view_as_complex(x.reshape(2, 3, 2, 2)) * torch.complex(y[..., :2], y[..., 2:])
    )
    with complex_in_reals():
        pair = torch.complex(y[..., :2], y[..., 2:])
        assert isinstance(pair, ComplexPair)
        product = torch.view_as_real(torch.view_as_complex(x.reshape(2, 3, 2, 2)) * pair)
    torch.testing.assert_close(product, expected)
    assert torch.complex(x, y).is_complex()
