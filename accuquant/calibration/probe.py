"""Ask, before anything is learned, whether there is anything to gain by it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import device_of

from .calls import Calls
from .descent import LearningSettings
from .gradient import LossFn, Segment, count_calls, gradient_arm
from .trajectory import TrajectoryBatch

#: Relative fall of the loss from which on a stage is worth its time: sixteen held-out trajectories tell a
#: mean log error to about 0.1.
WORTH = 0.1
#: Batches that are differentiated.
_BATCHES = 2


@dataclass(frozen=True)
class Probe:
    """What learning may take off the loss, as a share of it: what one batch's gradient promises another.

    `own` is what a batch promises itself. Where gradients are noise, batches promise themselves a lot and
    each other nothing. To the first order, and for the whole way that the learning rates allow: it is seldom
    that more is gained. NaN where a gradient is none.
    """

    gain: float
    own: float

    @property
    def worth_learning(self) -> bool:
        """Whether more is promised than held-out trajectories could not tell from luck anyway."""
        return not self.gain < WORTH  # NaN: let the descent find out, and name it

    def verdict(self) -> str:
        """Say why nothing was learned."""
        return (
            f"nothing to gain: the gradients of {_BATCHES} batches promise each other {self.gain:.1%} of the "
            f"loss, where {WORTH:.0%} could be told from luck"
        )


def promised(gradients: Sequence[Tensor], losses: Sequence[float], way: float) -> Probe:
    """Return what `gradients` [P] of several batches, with their losses, promise.

    Adam moves every parameter by its rate, against the sign of the gradient: `way` in all. Batch i's signs
    change batch j's loss by -way * <sign g_i, g_j>.
    """
    shares = torch.stack([
        torch.stack([way * (one.sign() * other).sum() / loss for one in gradients])
        for other, loss in zip(gradients, losses, strict=True)
    ])  # fmt: skip
    count = len(gradients)
    own = float(shares.diagonal().mean())
    return Probe(float(shares.sum() - shares.diagonal().sum()) / (count * (count - 1)), own)


def nothing_to_gain(
    network: torch.nn.Module,
    process: DenoisingProcess,
    parameters: Sequence[torch.nn.Parameter],
    batches: Sequence[TrajectoryBatch],
    steps: range,
    loss: LossFn,
    settings: LearningSettings,
    way: float,
) -> str:
    """Return why learning has nothing to gain, or "": not asked for, too few batches, or something to gain.

    The first two batches' ends after `steps` are differentiated. `way` is how far learning may go.
    """
    if not settings.probe or len(batches) < _BATCHES:
        return ""
    found = _differentiated(network, process, parameters, batches, steps, loss, settings.gradient, way)
    return "" if found.worth_learning else found.verdict()


def probe_calls(settings: LearningSettings, steps: int, batches: int) -> Calls:
    """Return the network's calls in a probe of `batches` over `steps` steps."""
    if not settings.probe or batches < _BATCHES or settings.iterations == 0:
        return Calls()
    return count_calls(settings.gradient, steps) * _BATCHES


def _differentiated(
    network: torch.nn.Module,
    process: DenoisingProcess,
    parameters: Sequence[torch.nn.Parameter],
    batches: Sequence[TrajectoryBatch],
    steps: range,
    loss: LossFn,
    gradient: str,
    way: float,
) -> Probe:
    arm, device = gradient_arm(gradient), device_of(network)
    gradients, losses = [], []
    for batch in itertools.islice((batch.to(device) for batch in batches), _BATCHES):
        for parameter in parameters:
            parameter.grad = None
        losses.append(arm(process, batch.bind(network), Segment(batch, steps), loss))
        gradients.append(torch.cat(list(_flat_gradients(parameters))))
    for parameter in parameters:
        parameter.grad = None
    if not all(map(math.isfinite, losses)):
        return Probe(math.nan, math.nan)
    tiny = torch.finfo(torch.float32).tiny
    return promised(gradients, [max(value, tiny) for value in losses], way)


def _flat_gradients(parameters: Sequence[torch.nn.Parameter]) -> Iterator[Tensor]:
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        yield gradient.flatten()
