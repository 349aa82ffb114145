from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accuquant.networks.tensor_peak import peak_of

MB = 1_000_000


class Wasteful(torch.autograd.Function):
    """Takes 8 MB in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] + torch.zeros(2 * MB).sum()


def test_what_is_freed_does_not_count_any_more() -> None:
    def work() -> None:
        a = torch.zeros(MB)
        b = a + 1
        del a
        c = b * 2
        del b
        c.view(-1)[:5].add_(1)

    assert peak_of(nn.Linear(1, 1), work) == 8 * MB


def test_what_was_there_before_does_not_count() -> None:
    there = torch.zeros(MB)
    assert peak_of(nn.Linear(1, 1), lambda: there.add_(1)) == 0


def test_what_layers_leave_for_the_gradient_counts() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Tanh()) for _ in range(5)))
    network.requires_grad_(False)
    x = torch.zeros(1000, 1000, requires_grad=True)
    with torch.no_grad():
        alone = peak_of(network, lambda: network(x))
    differentiated = peak_of(network, lambda: network(x).sum().backward())
    assert alone == 3 * 4 * MB  # a layer's input and output, and what tanh makes of it
    assert 6 * 4 * MB <= differentiated <= 8 * 4 * MB  # five outputs of tanh are kept


def test_the_backward_pass_counts_as_well() -> None:
    x = torch.zeros(1, requires_grad=True)
    peak = peak_of(nn.Linear(1, 1), lambda: Wasteful.apply(x).backward())
    assert 8 * MB <= peak < 8 * MB + 1000
