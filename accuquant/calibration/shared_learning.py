"""Learn what all step groups share, weight scales and biases, from the ends of several denoising steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.network import quantizable_layers
from accuquant.recipe import GroupResult, Recipe
from accuquant.simulate import QuantizedLayer, quantize_network, quantized_layers

from .descent import HeldOutJudge, LearningSettings, descend
from .gradient import LossFn, Segment
from .learning import end_point_loss, held_out_errors
from .output_correction import OutputCorrection, corrected
from .trajectory import TrajectoryBatch

#: When the held-out trajectories are asked, as shares of the iterations.
_MOMENTS = (1 / 4, 1 / 2, 3 / 4, 1)
#: Iterations over which the learning rate rises: Adam's first steps follow single batches.
_WARM_UP = 10
#: Adam remembers squared gradients for about 100 iterations, some rounds over the groups.
_BETAS = (0.9, 0.99)


def learn_shared(
    network: nn.Module,
    process: DenoisingProcess,
    recipe: Recipe,
    batches: Sequence[TrajectoryBatch],
    held_out: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    *,
    steps: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Recipe, GroupResult]:
    """Learn the weight scales and biases of `recipe`, and with them the activation scales of all groups.

    `network` is the float network. An iteration takes one of `batches` and one window: step groups in a row,
    at least `steps` sampler steps long, and the loss is that of its end point (arXiv 2510.20348). What is
    shared may look beyond the end of a group, and gains by it: an error of the same sign in every step grows
    with their number, one that is drawn anew hardly does. The windows come in turn, in a new order each time
    round. `held_out` chooses among four moments, by the sum over windows that tile a trajectory. Where none
    is better, and where the loss turns NaN, the recipe comes back as it was and the result says so. The
    losses in the result are medians of that sum.

    The learning rate counts in the relative error that quantization leaves at first: 0.1 moves scales by
    0.3 % an iteration where the latents err by 3 %, as with 4-bit weights, and by 0.1 % where by 1 %.
    """
    simulated = quantize_network(network, recipe.layers.values(), recipe.groups)
    layers = quantized_layers(simulated)
    windows, tiles = windows_of(recipe.groups.steps_of(process.timesteps), steps)
    with corrected(layers) as corrections:
        parameters = _parameters(layers, corrections)
        judge = _Judge(
            lambda: torch.stack([held_out_errors(simulated, process, tile, held_out) for tile in tiles]).sum(
                0
            ),
            parameters,
        )
        typical = [float(held_out_errors(simulated, process, w, held_out[:1]).median()) for w in windows]
        rate = settings.learning_rate * _relative(judge.initial_loss, held_out)
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=_BETAS)
        fault = descend(
            simulated,
            process,
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _share_of_rate(i, settings.iterations)),
            _draw(batches, windows, typical, seed),
            settings,
            moments=_MOMENTS,
            judge=judge,
            progress=progress,
        )
    if fault or not judge.restore():
        return recipe, judge.result("rolled_back", fault or judge.verdict())
    return _folded(network, recipe, layers, corrections), judge.result("learned")


def windows_of(groups: Sequence[Sequence[int]], steps: int) -> tuple[list[range], list[range]]:
    """Return the windows to learn from and those that tile a trajectory, as ranges of loop indices.

    `groups` are the loop indices of each step group, in order. A window holds whole groups, as few as make
    `steps` steps. One begins at every group behind which there are enough, and one ends with the trajectory.
    """
    starts, stops = [members[0] for members in groups], [members[-1] + 1 for members in groups]
    end = stops[-1]
    windows = [
        range(start, next(stop for stop in stops if stop - start >= steps))
        for start in starts
        if end - start >= steps
    ]
    if not windows or windows[-1].stop < end:
        last = max((start for start in starts if end - start >= steps), default=starts[0])
        windows.append(range(last, end))
    tiles = [windows[0]]
    while (start := tiles[-1].stop) < end:
        tiles.append(next((w for w in windows if w.start == start), range(start, end)))
    return windows, tiles


def _parameters(
    layers: Mapping[str, QuantizedLayer], corrections: Mapping[str, OutputCorrection]
) -> list[nn.Parameter]:
    """Return all that is learned; layers that read one tensor have one set of scales."""
    for layer in layers.values():
        layer.learning = True
    scales = {id(layer.log_scale): layer.log_scale for layer in layers.values()}
    return [*scales.values(), *(p for correction in corrections.values() for p in correction.parameters())]


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

    def __init__(self, errors: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Prepare to call `errors` -> [N], and to keep the values of `parameters`."""
        self._errors = errors
        self._parameters = parameters
        self._best: list[Tensor] = []
        super().__init__(errors())

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


def _draw(
    batches: Sequence[TrajectoryBatch], windows: Sequence[range], typical: Sequence[float], seed: int
) -> Iterator[tuple[Segment, LossFn]]:
    """Yield one window of one batch at a time, the windows in a new order each time round.

    `typical` are the end-point errors of the windows before learning.
    """
    rng = torch.Generator().manual_seed(seed)
    # losses near 1: Adam adds 1e-8 to the size of every gradient
    size = sum(typical) / len(windows) or 1.0
    while True:
        for window in reversed(torch.randperm(len(windows), generator=rng).tolist()):
            batch = batches[int(torch.randint(len(batches), (), generator=rng))]
            yield Segment(batch, windows[window]), _loss(typical[window], size)


def _relative(loss: float, batches: Sequence[TrajectoryBatch]) -> float:
    """Return the root of a squared error per element, as a share of the size of the latents."""
    power = torch.stack([batch.latents.square().mean() for batch in batches]).mean()
    return math.sqrt(loss / max(float(power), 1e-12))


def _loss(typical: float, size: float) -> LossFn:
    return lambda end, target: end_point_loss(end, target, typical) / size


def _share_of_rate(iteration: int, iterations: int) -> float:
    """Return the learning rate of an iteration as a share: a short rise, then a cosine to zero."""
    return min(1.0, (iteration + 1) / _WARM_UP) * (1 + math.cos(math.pi * iteration / iterations)) / 2
