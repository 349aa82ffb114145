"""Learn the rounding of weights block by block, from GPTQ's levels, weighed by what reaches the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from accuquant.networks.device import device_of
from accuquant.networks.simulate import quantize_network
from accuquant.recipe import GroupResult, Recipe

from .descent import HeldOutJudge
from .learning import held_out_errors
from .methods.blocks import tensors_of
from .methods.calibration_set import Pick, evenly_spaced, sizes_of
from .methods.method import Run
from .methods.reconstruction import Learnt, few_of, reconstruct
from .trajectory import TrajectoryBatch

#: Iterations a block, and steps of a trajectory that its inputs come from.
ITERATIONS, STEPS = 100, 20
#: Where learning begins: 1 is at GPTQ's levels, 0 at the float weights, or as near as a level beside them.
TRUST = 0.5


def learn_levels(
    run: Run, recipe: Recipe, held_out: Sequence[TrajectoryBatch], iterations: int = ITERATIONS
) -> tuple[Recipe, GroupResult]:
    """Return `recipe` with learned levels, or as it was where held-out trajectories do not end nearer.

    AdaRound of each block on what the blocks before make of its inputs (Nagel et al., arXiv 2004.10568;
    blocks: Li et al., arXiv 2102.05426), but each weight chooses between the level that `recipe` has and its
    neighbour towards the float weight, and begins between the two. `run.batches` are learned from. The rows
    of a block are weighed by `reach`; `held_out` trajectories judge by their ends, all steps simulated.
    """
    network, process = run.source.network, run.process
    steps = range(len(process))

    def errors(judged: Recipe) -> Tensor:
        simulated = quantize_network(network, judged.layers.values(), judged.groups)
        return held_out_errors(simulated, process, steps, held_out)

    judge = HeldOutJudge(errors(recipe), confidence=0)  # asked once, it takes what ends nearer
    picks = evenly_spaced(sizes_of(run.batches), len(steps), STEPS)
    numbers = {pick: number for number, pick in enumerate(few_of(picks))}

    def reached(block: str, chosen: Sequence[Pick]) -> Tensor:
        return relative([reach(run, block, pick, seed=numbers[pick]) for pick in chosen])

    found = reconstruct(
        run, recipe.layers, picks, scales=False, learnt=Learnt(iterations, TRUST, reached)
    )  # fmt: skip
    learned = replace(recipe, layers=found.layers)
    if not judge.is_best(errors(learned)):
        return recipe, GroupResult(judge.initial_loss, judge.initial_loss, "rolled_back", judge.verdict())
    return learned, GroupResult(judge.initial_loss, judge.best_loss, note=judge.note())


def reach(run: Run, block: str, pick: Pick, *, seed: int) -> Tensor:
    """Return what an error of `block` in the call of `pick` does to the latents after that step -> [rows].

    The squared gradient of v . x_{t-1} at what the block returns, mean over its numbers, v random signs: an
    estimate without bias of the diagonal of J^T J (Hutchinson, 1989). Copied to the end of the trajectory,
    as the gradient of a loss there is (AccuQuant), that is the Gauss-Newton matrix of the end point's loss.
    """
    network, process = run.source.network, run.process
    batch = run.batches[pick.batch].to(device_of(network))
    generators = process.restore_state(batch.state_before(pick.step))
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        cut_off = pytree.tree_map_only(Tensor, lambda t: t.detach().requires_grad_(), output)
        leaves.extend(tensors_of(cut_off))
        return cut_off

    hook = network.get_submodule(block).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            after = process.step(
                batch.bind(network), batch.latents_before(pick.step), pick.step, generators
            )  # fmt: skip
    finally:
        hook.remove()
    random = torch.Generator().manual_seed(seed)
    signs = (2 * torch.randint(0, 2, after.shape, generator=random) - 1).to(after)
    gradients = torch.autograd.grad(after, leaves, signs, allow_unused=True)
    found = [g.square().flatten(1) for g in gradients if g is not None]
    return torch.cat(found, 1).mean(1)


def relative(reaches: Sequence[Tensor]) -> Tensor:
    """Return weights of rows [n] whose mean is 1; all alike where nothing reaches the latents."""
    joined = torch.cat(list(reaches))
    mean = joined.mean()
    return joined / mean if float(mean) > 0 else torch.ones_like(joined)
