"""The blocks of a network that are reconstructed one by one, and what goes into and out of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .calibration_set import Pick, predict
from .method import Run

#: diffusers classes that are reconstructed as a whole; other layers are blocks of their own.
BLOCKS = (
    "ResnetBlock2D",
    "Attention",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)


class _ReachedError(Exception):
    """Ends a call of the network behind the block that is looked at."""


@dataclass(frozen=True)
class Rows:
    """The arguments of a block on many calls, joined, and what it should return [rows, ...] a tensor.

    `leaves` are the arguments in the order of `spec`: tensors with a row each where `by_row`, and what all
    calls have in common.
    """

    leaves: Sequence[Any]
    by_row: Sequence[bool]
    spec: Any
    targets: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.targets[0])

    def run(self, block: nn.Module, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return outputs and targets of `block` on some rows."""
        leaves = [leaf[rows] if own else leaf for leaf, own in zip(self.leaves, self.by_row, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tensors_of(block(*args, **kwargs)), [target[rows] for target in self.targets]


def block_names(
    network: nn.Module, layers: Sequence[str], alone: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Return the blocks that hold `layers`, by name, with their layers; the outermost of BLOCKS counts.

    A layer in `alone` is a block of its own.
    """
    modules = dict(network.named_modules())
    found: dict[str, list[str]] = {}
    for layer in layers:
        parts = layer.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts))]
        block = next((name for name in above if type(modules[name]).__name__ in BLOCKS), layer)
        found.setdefault(layer if layer in alone else block, []).append(layer)
    return {block: tuple(names) for block, names in found.items()}


def in_order(run: Run, names: Sequence[str], pick: Pick) -> list[str]:
    """Return those of the blocks `names` that a call of the float network runs, in the order it does."""
    order: list[str] = []
    modules = dict(run.source.network.named_modules())

    def note(name: str) -> None:
        if name not in order:
            order.append(name)

    hooks = [modules[n].register_forward_pre_hook(lambda _m, _a, name=n: note(name)) for n in names]
    try:
        predict(run.source.network, run.process, run.batches, pick)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def rows_of(run: Run, name: str, quantized: nn.Module, picks: Sequence[Pick]) -> Rows:
    """Return what `quantized` gives the block `name` on `picks`, and what it returns in the float network.

    Inputs with the errors of the blocks before: "asymmetric" reconstruction, arXiv 2004.10568, equation 25.
    """
    targets = [
        tensors_of(output)
        for output in _watched(run, run.source.network, name, picks, lambda _args, _kwargs, output: output)
    ]
    calls = _watched(run, quantized, name, picks, lambda args, kwargs, _output: (args, kwargs))
    flat = [pytree.tree_flatten(call) for call in calls]
    columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
    sizes = [len(target[0]) for target in targets]
    by_row = [_differs(column, sizes) for column in columns]
    return Rows(
        leaves=[torch.cat(column) if own else column[0] for column, own in zip(columns, by_row, strict=True)],
        by_row=by_row,
        spec=flat[0][1],
        targets=[torch.cat(parts) for parts in zip(*targets, strict=True)],
    )


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors that a block returned: one, or those of a tuple."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _differs(column: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Say whether an argument has a row for each row of the call: what all calls share has not."""
    if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in column):
        return False
    if any(len(leaf) != size for leaf, size in zip(column, sizes, strict=True)):
        return False
    return len(column) == 1 or any(
        leaf.shape != column[0].shape or not torch.equal(leaf, column[0]) for leaf in column[1:]
    )


def _watched(
    run: Run, network: nn.Module, name: str, picks: Sequence[Pick], keep: Callable[[Any, Any, Any], Any]
) -> list[Any]:
    """Return what `keep` makes of arguments, keyword arguments and output of a module in every call."""
    kept: list[Any] = []

    def see(_module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        kept.append(keep(args, dict(kwargs), output))
        raise _ReachedError

    hook = dict(network.named_modules())[name].register_forward_hook(see, with_kwargs=True)
    try:
        for pick in picks:
            try:
                predict(network, run.process, run.batches, pick)
            except _ReachedError:
                continue
    finally:
        hook.remove()
    return kept
