"""Learn the activation scales of one step group by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import device_of
from accuquant.networks.simulate import quantized_layers
from accuquant.recipe import GroupResult

from .calls import Calls
from .descent import HeldOutJudge, LearningSettings, descend, descent_calls, draw_segments
from .descent_state import DescentState
from .gradient import Segment, rollout
from .probe import nothing_to_gain, probe_calls
from .trajectory import TrajectoryBatch

#: When the held-out trajectories are asked, as shares of the iterations.
_MOMENTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
#: Moments in a row without progress that end the descent.
_PATIENCE = 3


def sample_errors(end: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample: [B, ...], [B, ...] -> [B]."""
    return (end - target).square().flatten(1).mean(1)


def end_point_loss(end: Tensor, target: Tensor, scale: float = 0.0) -> Tensor:
    """Return ||x_{t-M} - x~_{t-M}||^2, mean over the elements (0-d).

    With `scale` > 0 a sample whose error e is far above it counts as scale * log(1 + e / scale): the few
    trajectories that diverge do not decide alone (the Cauchy loss of robust statistics).
    """
    errors = sample_errors(end, target)
    if scale > 0:
        errors = scale * torch.log1p(errors / scale)
    return errors.mean()


def learn_group(
    network: nn.Module,
    process: DenoisingProcess,
    steps: range,
    group: int,
    batches: Sequence[TrajectoryBatch],
    held_out: Sequence[TrajectoryBatch],
    settings: LearningSettings,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
    kept: DescentState | None = None,
) -> GroupResult:
    """Learn the scales of `group` in the simulated `network`, in place.

    `batches` are learned from; `held_out` decides at six moments of the descent: more iterations also fit
    the trajectories that are learned from ever closer. Where no moment lowers the end-point error of the
    held-out trajectories, and where the loss turns NaN, the group goes back to its initial scales and the
    result says so. The descent ends early after three moments in a row without progress, and does not begin
    where a probe of two batches finds nothing to gain. It goes on from what `kept` has of an earlier run.
    """
    kept = kept or DescentState()
    judge = _Judge(network, process, steps, held_out, group, kept.of("judge"))
    before = judge.initial_loss
    if settings.iterations == 0:
        return GroupResult(before, before, "initial", "no iterations asked for")

    def loss(end: Tensor, target: Tensor) -> Tensor:
        return end_point_loss(end, target, before)

    layers = quantized_layers(network).values()
    initial = [layer.scale_of(group) for layer in layers]
    for layer in layers:
        layer.learning = True
    parameters = [p for p in network.parameters() if p.requires_grad]
    way = settings.learning_rate * settings.iterations / 2
    probed = kept.of("judge") is None  # what was begun had something to gain
    if probed and (
        reason := nothing_to_gain(network, process, parameters, batches, steps, loss, settings, way)
    ):
        for layer in layers:
            layer.learning = False
        if progress is not None:
            progress(settings.iterations)
        return GroupResult(before, before, "initial", reason)
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    fault = descend(
        network,
        process,
        optimizer,
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations),
        draw_segments(batches, steps, loss, seed, device_of(network)),
        settings,
        moments=_MOMENTS,
        judge=judge,
        progress=progress,
        kept=kept,
    )
    for layer, scale in zip(layers, initial, strict=True):
        layer.learning = False
        if fault:
            layer.set_scale(group, scale)
        layer.revert(group)
    if judge.found_better and not fault:
        return GroupResult(before, judge.best_loss, note=judge.note())
    return GroupResult(before, before, "rolled_back", fault or judge.verdict())


def count_calls(settings: LearningSettings, steps: int, held_out: int, learned_from: int) -> Calls:
    """Return at most how often `learn_group` calls the network for a group of `steps`.

    `held_out` counts the batches that judge; they may end the descent early, and a probe of those that are
    `learned_from` may spare it.
    """
    return descent_calls(settings, _MOMENTS, steps, held_out) + probe_calls(settings, steps, learned_from)


class _Judge(HeldOutJudge):
    """Keeps the scales of a group where held-out trajectories find them the best so far."""

    def __init__(
        self,
        network: nn.Module,
        process: DenoisingProcess,
        steps: range,
        held_out: Sequence[TrajectoryBatch],
        group: int,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure the errors before learning, unless they are in the state that an earlier judge `kept`."""
        self._evaluated = (network, process, steps, held_out)
        self._layers = list(quantized_layers(network).values())
        self._group = group
        self._without_progress = 0
        super().__init__(self._errors() if kept is None else kept["before"].to(device_of(network)))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a judgement depends on, and the scales that were kept."""
        scales = [layer.scale for layer in self._layers]
        return {**super().state_dict(), "without_progress": self._without_progress, "scales": scales}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        super().load_state_dict(state)
        self._without_progress = state["without_progress"]
        for layer, scale in zip(self._layers, state["scales"], strict=True):
            layer.scale.copy_(scale.to(layer.scale.device))

    def _errors(self) -> Tensor:
        return held_out_errors(*self._evaluated).clamp_min(torch.finfo(torch.float32).tiny)

    def __call__(self) -> bool:
        """Keep the present scales where they are the best so far; return whether to go on."""
        if self.is_best(self._errors()):
            self._without_progress = 0
            for layer in self._layers:
                layer.commit(self._group)
        else:
            self._without_progress += 1
        return self._without_progress < _PATIENCE


@torch.no_grad()
def held_out_errors(
    network: nn.Module, process: DenoisingProcess, steps: range, batches: Sequence[TrajectoryBatch]
) -> Tensor:
    """Return the end-point error of every sample after `steps` -> [N]."""
    errors = []
    device = device_of(network)
    for batch in (batch.to(device) for batch in batches):
        segment = Segment(batch, steps)
        end = rollout(process, batch.bind(network), segment)[0][-1]
        errors.append(sample_errors(end, segment.target))
    return torch.cat(errors)
