"""Learn what all step groups share, weight scales and biases, from the ends of whole trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import device_of
from accuquant.networks.network import quantizable_layers
from accuquant.networks.simulate import QuantizedLayer
from accuquant.recipe import GroupResult, Recipe
from accuquant.units.per_worker import PerWorker
from accuquant.units.units import SERIAL, Engine

from .calls import Calls
from .descent import HeldOutJudge, LearningSettings, descend, descent_calls, draw_segments
from .descent_state import DescentState
from .learning import end_point_loss
from .output_correction import OutputCorrection
from .probe import nothing_to_gain
from .shared_units import Learner, SharedUnits
from .trajectory import TrajectoryBatch

#: When the held-out trajectories are asked, as shares of the iterations.
_MOMENTS = tuple((eighth + 1) / 8 for eighth in range(8))
#: Iterations over which the learning rate rises: Adam's first steps follow single batches.
_WARM_UP = 3
_BETAS = (0.9, 0.99)


def learn_shared(
    network: nn.Module,
    process: DenoisingProcess,
    recipe: Recipe,
    batches: Sequence[TrajectoryBatch],
    held_out: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
    checkpoint: bool | None = None,
    kept: DescentState | None = None,
    engine: Engine = SERIAL,
) -> tuple[Recipe, GroupResult]:
    """Learn the weight scales and biases of `recipe`, and with them the activation scales of all groups.

    `network` is the float network. An iteration takes one of `batches` through all steps, and the loss is
    that of the trajectory's end point: what every step shares may look as far as every step reaches, and
    gains by it, because an error that has the same sign in each of them adds up (arXiv 2510.20348, with M
    as large as it can be). `held_out` chooses among eight moments. Where none is better, and where the loss
    turns NaN, or where a probe of two batches finds nothing to gain, the recipe comes back as it was and the
    result says so. The losses in the result are medians.

    `settings.gradient` "exact" is computed as "checkpoint": the same gradient, in memory that does not grow
    with the number of steps. The learning rate counts in the relative error that quantization leaves at
    first: 0.01 moves scales by 0.03 % an iteration where the latents err by 3 %, and by 0.01 % where by 1 %.
    `checkpoint` is as in `checkpoint_blocks`. The descent goes on from what `kept` has of an earlier run.
    `engine` computes the steps of a gradient and the batches that judge.
    """
    kept, settings = kept or DescentState(), _in_bounded_memory(settings)
    steps = range(len(process))
    maker = PerWorker(lambda: Learner.of(network, process, recipe, batches[0], checkpoint))
    learner, shared = maker.get(), SharedUnits(engine, maker, process, steps, held_out)
    simulated, parameters = learner.network, learner.parameters
    with learner.attached:
        judge = _Judge(shared.errors, parameters, learner.corrections.values(), kept.of("judge"))
        typical = judge.initial_loss or 1.0
        rate = settings.learning_rate * _relative(judge.initial_loss, held_out)

        def loss(end: Tensor, target: Tensor) -> Tensor:
            # losses near 1: Adam adds 1e-8 to the size of every gradient
            return end_point_loss(end, target, typical) / typical

        way = rate * sum(_share_of_rate(i, settings.iterations) for i in range(settings.iterations))
        probed = kept.of("judge") is None  # what was begun had something to gain
        if probed and (
            reason := nothing_to_gain(simulated, process, parameters, batches, steps, loss, settings, way)
        ):
            if progress is not None:
                progress(settings.iterations)
            return recipe, judge.result("initial", reason)
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=_BETAS)
        fault = descend(
            simulated,
            process,
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _share_of_rate(i, settings.iterations)),
            draw_segments(batches, steps, loss, seed, device_of(network)),
            settings,
            moments=_MOMENTS,
            judge=judge,
            progress=progress,
            kept=kept,
            arm=shared.arm(settings.gradient),
        )
    if fault or not judge.restore():
        return recipe, judge.result("rolled_back", fault or judge.verdict())
    return _folded(network, recipe, learner.layers, learner.corrections), judge.result(
        "learned", judge.note()
    )


def count_calls(settings: LearningSettings, steps: int, held_out: int) -> Calls:
    """Return the network's calls of `learn_shared` over `steps` steps, judged by `held_out` batches."""
    if settings.iterations == 0:
        return Calls()
    return descent_calls(_in_bounded_memory(settings), _MOMENTS, steps, held_out)


def _in_bounded_memory(settings: LearningSettings) -> LearningSettings:
    return replace(settings, gradient="checkpoint") if settings.gradient == "exact" else settings


def _folded(
    network: nn.Module,
    recipe: Recipe,
    layers: Mapping[str, QuantizedLayer],
    corrections: Mapping[str, OutputCorrection],
) -> Recipe:
    """Return `recipe` with what was learned."""
    for layer in layers.values():
        layer.learning = False
        for group in range(len(recipe.groups)):
            layer.commit(group)
    original = quantizable_layers(network)
    return replace(
        recipe,
        layers={
            name: corrections[name].fold(layer.learned_qparams(), layer, original[name])
            for name, layer in layers.items()
        },
    )


class _Judge(HeldOutJudge):
    """Keeps parameters where held-out trajectories find them the best."""

    def __init__(
        self,
        errors: Callable[[], Tensor],
        parameters: Sequence[nn.Parameter],
        corrections: Iterable[OutputCorrection] = (),
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare to call `errors` -> [N], and to keep the values of `parameters`.

        The errors before learning, and the units that `corrections` count in, come from the first call,
        unless they are in the state that an earlier judge `kept`.
        """
        self._errors = errors
        self._parameters = parameters
        self._corrections = list(corrections)
        self._best: list[Tensor] = []
        super().__init__(errors() if kept is None else kept["before"].to(parameters[0].device))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a judgement depends on, the best values, and the corrections' units."""
        units = [correction.unit for correction in self._corrections]
        return {**super().state_dict(), "best": self._best, "units": units}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        super().load_state_dict(state)
        self._best = [value.to(self._parameters[0].device) for value in state["best"]]
        for correction, unit in zip(self._corrections, state["units"], strict=True):
            correction.unit = unit

    def __call__(self) -> bool:
        """Keep the present values of the parameters where they are the best so far; never end the descent."""
        if self.is_best(self._errors()):
            self._best = [p.detach().clone() for p in self._parameters]
        return True

    @torch.no_grad()
    def restore(self) -> bool:
        """Give the parameters their best values; return whether there are better ones than the first."""
        for parameter, value in zip(self._parameters, self._best, strict=False):
            parameter.copy_(value)
        return self.found_better

    def result(self, status: str, note: str = "") -> GroupResult:
        """Return what the recipe tells about the learning."""
        final = self.best_loss if status == "learned" else self.initial_loss
        return GroupResult(self.initial_loss, final, status, note)


def _relative(loss: float, batches: Sequence[TrajectoryBatch]) -> float:
    """Return the root of a squared error per element, as a share of the size of the latents, or the end."""
    compared = [batch.latents if (end := batch.end) is None else end for batch in batches]
    power = torch.stack([tensor.square().mean() for tensor in compared]).mean()
    return math.sqrt(loss / max(float(power), 1e-12))


def _share_of_rate(iteration: int, iterations: int) -> float:
    """Return the learning rate of an iteration as a share: a short rise, then a cosine to zero."""
    return min(1.0, (iteration + 1) / _WARM_UP) * (1 + math.cos(math.pi * iteration / iterations)) / 2
