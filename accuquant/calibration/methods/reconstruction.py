"""Reconstruct a network block by block: first the rounding of its weights, then the scales of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.networks.simulate import quantize_network
from accuquant.qparams import LayerQParams

from .adaround import beta_at, undecided
from .blocks import Rows, block_names, in_order, rows_of
from .calibration_set import Pick
from .learnable_layer import LearnableLayer, make_learnable
from .method import Run

#: Latents that blocks are reconstructed on, and how many of them an iteration takes.
ROWS, BATCH = 256, 32
#: Weight of the regularizer of the rounding, in Q-Diffusion's repository.
ROUNDING_WEIGHT = 0.01
#: Adam's step times iterations: 20,000 iterations of 1e-3 there; the step is bounded.
TRAVEL, FASTEST = 20.0, 0.05
#: Scales take a quarter of the iterations of weights there; the step is on their logarithms.
SCALE_SHARE, SCALE_RATE, SCALE_NORM = 0.25, 4e-3, 2.4


@dataclass(frozen=True)
class Reconstructed:
    """Qparams after reconstruction, and each block's error on the way: before and after, first and last."""

    layers: dict[str, LayerQParams]
    errors: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Learnt:
    """How levels are learned where it is not from the float weights and with all rows alike.

    `trust` is as in `LearnableLayer.begin`; `weigh` gives weights of a block's rows on picks, of mean 1.
    """

    iterations: int
    trust: float
    weigh: Callable[[str, Sequence[Pick]], Tensor]


def few_of(picks: Sequence[Pick], rows: int = ROWS) -> list[Pick]:
    """Return picks of about `rows` latents together, spread over all of `picks`."""
    total = sum(len(pick.rows) for pick in picks)
    count = max(1, min(len(picks), round(len(picks) * rows / max(1, total))))
    return [picks[int(index)] for index in np.linspace(0, len(picks) - 1, count).round()]


def reconstruct(
    run: Run,
    qparams: Mapping[str, LayerQParams],
    picks: Sequence[Pick],
    *,
    scales: bool,
    alone: Mapping[str, Sequence[Pick]] | None = None,
    learnt: Learnt | None = None,
) -> Reconstructed:
    """Return `qparams` with levels learned block by block, and with `scales` their activation scales too.

    Weights are learned with float activations and the errors of the blocks before; scales afterwards, with
    everything quantized (Q-Diffusion, arXiv 2302.04304, section 4; the order is its repository's). The layers
    in `alone` are no part of the blocks around them, and are reconstructed on picks of their own. `learnt`
    is AccuQuant's own way of it.
    """
    network = run.source.network
    simulated = quantize_network(network, qparams.values(), run.groups)
    layers, few = make_learnable(simulated, network), few_of(picks)
    alone = alone or {}
    blocks = block_names(network, list(qparams), alone)
    order, errors = in_order(run, list(blocks), few[0]), {}
    iterations = learnt.iterations if learnt else run.settings.group_iterations
    run.shown.stage("weights of blocks", len(order))
    for number, name in enumerate(order):
        members = [layers[layer] for layer in blocks[name]]
        some = alone.get(name, few)
        rows = rows_of(run, name, simulated, some)
        errors[name] = learn_rounding(
            simulated.get_submodule(name), members, rows, iterations, run.settings.seed + number,
            learnt=learnt, weights=learnt.weigh(name, some) if learnt else None,
        )  # fmt: skip
        run.shown.advance()
    if scales:
        _learn_all_scales(run, simulated, layers, blocks, order, few)
    return Reconstructed({name: _learned(layer) for name, layer in layers.items()}, errors)


def learn_rounding(
    block: nn.Module,
    layers: Sequence[LearnableLayer],
    rows: Rows,
    iterations: int,
    seed: int,
    *,
    learnt: Learnt | None = None,
    weights: Tensor | None = None,
) -> tuple[float, float]:
    """Learn the levels of a block's `layers`, which stay; return the block's error before and after.

    The errors are mean squares over all `rows`, each with its weight where there are `weights` [rows].
    """
    for layer in layers:
        layer.weights = "levels"
    before = _error(block, rows, weights)
    if iterations == 0:
        return before, before
    parameters = [layer.begin(learnt.trust if learnt else None) for layer in layers]
    optimizer = torch.optim.Adam(parameters, lr=min(FASTEST, TRAVEL / iterations))
    draw = _drawn(rows, seed)
    for iteration in range(iterations):
        drawn = draw()
        outputs, targets = rows.run(block, drawn)
        pairs = zip(outputs, targets, strict=True)
        some = None if weights is None else weights[drawn]
        loss = sum((_distance(y, t, 2.0, some) for y, t in pairs), torch.zeros(()))
        beta = beta_at(iteration, iterations)
        if beta is not None:
            loss = loss + ROUNDING_WEIGHT * sum(undecided(alpha, beta) for alpha in parameters)
        _descend(optimizer, loss)
    for layer in layers:
        layer.finish()
    return before, _error(block, rows, weights)


def _learn_all_scales(
    run: Run,
    simulated: nn.Module,
    layers: Mapping[str, LearnableLayer],
    blocks: Mapping[str, Sequence[str]],
    order: Sequence[str],
    few: Sequence[Pick],
) -> None:
    run.shown.stage("scales of blocks", len(order))
    iterations = math.ceil(run.settings.group_iterations * SCALE_SHARE)
    for number, name in enumerate(order):
        members = [layers[layer] for layer in blocks[name]]
        rows = rows_of(run, name, simulated, few)
        for member in members:
            member.inputs = True
        learn_scales(simulated.get_submodule(name), members, rows, iterations, run.settings.seed + number)
        run.shown.advance()


def learn_scales(
    block: nn.Module, layers: Sequence[LearnableLayer], rows: Rows, iterations: int, seed: int
) -> None:
    """Learn the activation scales of a block's `layers` by the mean |error|^2.4 of what it returns (LSQ)."""
    for layer in layers:
        layer.quantized.learning = True
    shared = {id(layer.quantized.log_scale): layer.quantized.log_scale for layer in layers}
    optimizer = torch.optim.Adam(shared.values(), lr=SCALE_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations))
    draw = _drawn(rows, seed)
    for _ in range(iterations):
        outputs, targets = rows.run(block, draw())
        pairs = zip(outputs, targets, strict=True)
        _descend(optimizer, sum((_distance(y, t, SCALE_NORM) for y, t in pairs), torch.zeros(())))
        schedule.step()
    for layer in layers:
        layer.quantized.learning = False
        for group in range(len(layer.quantized.scale)):
            layer.quantized.commit(group)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _distance(output: Tensor, target: Tensor, power: float, weights: Tensor | None = None) -> Tensor:
    """Return |error|^power summed over channels (axis 1) and averaged over the rest, as Q-Diffusion does."""
    error = (output - target).abs().pow(power)
    return (error if weights is None else _weighed(error, weights)).sum(1).mean()


def _weighed(error: Tensor, weights: Tensor) -> Tensor:
    """Return errors [rows, ...] times the weights [rows]."""
    return error * weights.to(error).reshape(-1, *[1] * (error.ndim - 1))


@torch.no_grad()
def _error(block: nn.Module, rows: Rows, weights: Tensor | None) -> float:
    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH):
        part = torch.arange(start, min(start + BATCH, len(rows)))
        for output, target in zip(*rows.run(block, part), strict=True):
            error = (output - target).square()
            total += float((error if weights is None else _weighed(error, weights[part])).sum())
            count += output.numel()
    return total / max(1, count)


def _drawn(rows: Rows, seed: int) -> Callable[[], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return lambda: torch.randperm(len(rows), generator=rng)[:BATCH]


def _learned(layer: LearnableLayer) -> LayerQParams:
    learned = layer.quantized.learned_qparams()
    return replace(learned, weight_levels=layer.quantized.levels.cpu().numpy())
