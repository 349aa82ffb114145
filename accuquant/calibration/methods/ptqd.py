"""Calibrate by PTQD: Q-Diffusion's network, whose prediction errors are corrected in the sampler's step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantize_network
from accuquant.prediction_correction import PredictionCorrection

from . import q_diffusion
from .calibration_set import every_step, predict
from .method import Found, Method, Run
from .observed import batch_sizes


@dataclass
class ErrorMoments:
    """Sums over predictions e and their errors d in one step, by channel, in float64."""

    channels: int
    count: int = 0
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(4, self.channels, dtype=torch.float64)

    def add(self, exact: Tensor, error: Tensor) -> None:
        """Add predictions [..., C] and their errors."""
        e, d = (x.reshape(-1, self.channels).double().cpu() for x in (exact, error))
        self.count += len(e)
        self.sums += torch.stack([e.sum(0), d.sum(0), e.square().sum(0), (e * d).sum(0)])

    def fit(self) -> tuple[float, Tensor]:
        """Return k >= 0 and the bias [C] with d ~= k e + bias.

        k is the slope of the regression over all channels together (arXiv 2305.10657, section 4.1), the bias
        the mean of what is left in each (section 4.2). A negative slope counts as 0, as in the authors'
        repository: dividing by less than 1 would make the noise larger.
        """
        number = self.count * self.channels
        e, d, square, product = (float(values.sum()) for values in self.sums)
        variance = square - e * e / number
        slope = max(0.0, (product - e * d / number) / variance) if variance > 0 else 0.0
        return slope, (self.sums[1] - slope * self.sums[0]) / self.count


def find(run: Run) -> Found:
    """Return what Q-Diffusion finds, and the correction of its predictions."""
    base = q_diffusion.find(run)
    quantized = quantize_network(run.source.network, base.layers.values(), run.groups)
    correction, slopes = measure(run, quantized)
    return Found(base.layers, {**base.facts, "correlated_share": slopes}, correction)


@torch.no_grad()
def measure(run: Run, quantized: nn.Module) -> tuple[PredictionCorrection, list[float]]:
    """Return the correction of what `quantized` predicts on the float network's trajectories, and each k."""
    process = run.process
    steps = StepGroups.from_timesteps(
        process.timesteps, group_size=1, num_train_timesteps=process.num_train_timesteps
    )
    picks = every_step(batch_sizes(run), len(process))
    run.shown.stage("errors of predictions", len(picks))
    moments: list[ErrorMoments | None] = [None] * len(steps)
    outputs = 1
    for pick in picks:
        raw = predict(run.source.network, process, run.batches, pick)
        exact, seen = (
            _guided(process, run, x) for x in (raw, predict(quantized, process, run.batches, pick))
        )
        group, outputs = steps.find(process.timesteps[pick.step]), raw.shape[_axis(raw)]
        kept = moments[group] = moments[group] or ErrorMoments(exact.shape[_axis(exact)])
        kept.add(exact.movedim(_axis(exact), -1), (seen - exact).movedim(_axis(exact), -1))
        run.shown.advance()
    fits = [found.fit() for found in moments if found is not None]
    factor, bias = torch.ones(len(steps), outputs), torch.zeros(len(steps), outputs)
    for step, (slope, offset) in enumerate(fits):
        factor[step, : len(offset)] = 1 / (1 + slope)  # a learned variance behind them stays as it is
        bias[step, : len(offset)] = offset.float()
    return PredictionCorrection(steps, factor.numpy(), bias.numpy()), [slope for slope, _ in fits]


def _guided(process: DenoisingProcess, run: Run, prediction: Tensor) -> Tensor:
    """Return what the scheduler takes; guidance weights sum to 1, so that each copy is corrected alike."""
    return process.guidance.combine(prediction, run.batches[0].latents_before(0).shape[1])


def _axis(prediction: Tensor) -> int:
    """Return the axis of the channels: the last one of packed patches [B, N, C]."""
    return 2 if prediction.ndim == 3 else 1


METHOD = Method(
    name="ptqd",
    meaning="q-diffusion, and the correlated part and bias of its prediction error corrected at every step",
    source="He et al., arXiv 2305.10657, sections 4.1 and 4.2; both networks on the float one's "
    "trajectories, as in the authors' repository",
    matched="(prediction - bias) / (1 + k) in each step, k >= 0: in the simulation and at the graph's "
    "output, so that every loop around the network applies it",
    not_matched="the sampler's variance less that of the rest of the error (section 4.2, variance schedule "
    "calibration): it needs a sampler that draws noise, and DDIM draws none. Bits that differ by "
    "step (section 4.3). The bias is that of the rest once k is taken off, as in the paper; the "
    "repository takes that of the whole error",
    find=find,
    options=("iterations",),
    every_step=True,
    iterations=q_diffusion.METHOD.iterations,
)
