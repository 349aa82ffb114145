"""Apply folds to a network: a copy with other weights, which computes the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.channel_fold import ChannelFold
from accuquant.errors import RecipeError
from accuquant.networks.network import bias_of, weight_of


@torch.no_grad()
def fold_network(network: nn.Module, folds: Iterable[ChannelFold]) -> nn.Module:
    """Return `network` with its channels scaled as `folds` say; what they leave alone is shared, not copied.

    Raises RecipeError where the network has no such parts.
    """
    folds = tuple(folds)
    if not folds:
        return network
    modules = dict(network.named_modules())
    changed: dict[str, nn.Module] = {}

    def part(name: str, factors: Tensor, *, reads: bool) -> tuple[nn.Module, Tensor]:
        if name not in changed:
            changed[name] = _with_own_weights(name, modules.get(name))
        module = changed[name]
        length = weight_of(module).shape[1 if reads else 0]
        if length < len(factors) or (reads and length != len(factors)):
            raise _misfit(name, f"{length} channels", f"{len(factors)}, which are to be scaled")
        return module, factors.to(weight_of(module).device)

    for fold in folds:
        factors = torch.from_numpy(fold.factors)
        producer, own = part(fold.producer, factors, reads=False)
        rows, weight, bias = len(factors), weight_of(producer), bias_of(producer)
        if fold.rotated > 1 and not isinstance(producer, nn.Linear):
            raise _misfit(fold.producer, type(producer).__name__, "a linear layer, which can be rotated")
        weight[:rows] /= own.reshape(-1, *[1] * (weight.ndim - 1))
        weight[:rows] = rotate(weight[:rows], fold.rotated)
        if bias is not None:
            bias[:rows] = rotate(bias[:rows] / own, fold.rotated)
        for name in fold.consumers:
            consumer, own = part(name, factors, reads=True)
            read = weight_of(consumer)
            read.copy_(rotate(read.mul_(own).T, fold.rotated).T)
    memo: dict[int, Any] = {id(modules[name]): module for name, module in changed.items()}
    memo |= {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo).eval()


def rotate(values: Tensor, block: int) -> Tensor:
    """Return `values` [C, ...] whose blocks of `block` entries along the first axis are rotated.

    By Sylvester's Hadamard matrix over its root, in the steps of the fast transform; `block` is a power of 2.
    """
    rotated, half = values, 1
    while half < block:
        pairs = rotated.reshape(-1, 2, half, *values.shape[1:])
        rotated = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1) / math.sqrt(2)
        rotated, half = rotated.reshape(values.shape), 2 * half
    return rotated


def _with_own_weights(name: str, module: nn.Module | None) -> nn.Module:
    """Return a module like `module` whose weight, in float32, and bias may be changed."""
    if module is None or not isinstance(module, nn.Linear | nn.GroupNorm | nn.LayerNorm):
        raise _misfit(name, type(module).__name__, "a linear layer, GroupNorm or LayerNorm")
    bias = bias_of(module)
    made: nn.Module
    if isinstance(module, nn.Linear):
        made = nn.Linear(module.in_features, module.out_features, bias is not None)
    else:
        made = copy.copy(module)
        made._parameters = dict(module._parameters)
    made.register_parameter("weight", nn.Parameter(weight_of(module).float().clone(), requires_grad=False))
    if bias is not None:
        made.register_parameter("bias", nn.Parameter(bias.float().clone(), requires_grad=False))
    return made


def _misfit(name: str, got: str, expected: str) -> RecipeError:
    return RecipeError(
        f"fold, '{name}'",
        got=got,
        expected=expected,
        remedy="The recipe was calibrated from another model. Run `accuquant calibrate` again",
    )
