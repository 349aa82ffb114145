"""Iterations of the shared stage in units of work: the steps of a gradient, the batches that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess, NetworkFn, ProcessState
from accuquant.networks.device import CPU, device_of
from accuquant.networks.mapped_pages import give_back_weights
from accuquant.networks.simulate import QuantizedLayer, quantize_network, quantized_layers
from accuquant.recipe import Recipe
from accuquant.units.per_worker import PerWorker
from accuquant.units.units import Engine, InMemory

from .block_checkpoints import checkpoint_blocks
from .gradient import GradientArm, LossFn, Segment, end_point_gradient, gradient_arm, rollout
from .learning import held_out_errors
from .output_correction import OutputCorrection, corrected
from .trajectory import TrajectoryBatch


@dataclass(frozen=True)
class Learner:
    """A simulated network whose outputs pass through corrections, and all of it that is learned."""

    network: nn.Module
    layers: Mapping[str, QuantizedLayer]
    corrections: Mapping[str, OutputCorrection]
    parameters: Sequence[nn.Parameter]
    attached: ExitStack

    @classmethod
    def of(
        cls,
        network: nn.Module,
        process: DenoisingProcess,
        recipe: Recipe,
        batch: TrajectoryBatch,
        checkpoint: bool | None,
    ) -> Learner:
        """Make it from the float network; `batch` is what a call is measured with."""
        simulated = quantize_network(network, recipe.layers.values(), recipe.groups)
        give_back_weights(network, recipe.layers)
        checkpoint_blocks(simulated, process, batch, checkpoint)
        layers, attached = quantized_layers(simulated), ExitStack()
        corrections = attached.enter_context(corrected(layers))
        return cls(simulated, layers, corrections, _parameters(layers, corrections), attached)

    @torch.no_grad()
    def state(self) -> tuple[list[Tensor], list[float]]:
        """Return copies of all parameters on the CPU, and the units that corrections count in."""
        values = [parameter.detach().to(CPU, copy=True) for parameter in self.parameters]
        return values, [correction.unit for correction in self.corrections.values()]

    @torch.no_grad()
    def set_state(self, values: Sequence[Tensor], units: Sequence[float]) -> None:
        """Take over what `state` returned in another process, without gradients."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
            parameter.grad = None
        for correction, unit in zip(self.corrections.values(), units, strict=True):
            correction.unit = unit


def _parameters(
    layers: Mapping[str, QuantizedLayer], corrections: Mapping[str, OutputCorrection]
) -> list[nn.Parameter]:
    """Return all that is learned; layers that read one tensor have one set of scales."""
    for layer in layers.values():
        layer.learning = True
    scales = {id(layer.log_scale): layer.log_scale for layer in layers.values()}
    return [*scales.values(), *(p for correction in corrections.values() for p in correction.parameters())]


@dataclass(frozen=True)
class SharedUnits:
    """Lets an engine compute what an iteration consists of; the descent itself stays here.

    The rollout of a gradient is one step after the other and is made here; then every step is differentiated
    by itself (the copied gradient), as a unit. What the steps give is added in their order, as one process
    would. Other gradients run through all steps and are computed here.
    """

    engine: Engine
    learner: PerWorker[Learner]
    process: DenoisingProcess
    steps: range
    held_out: Sequence[TrajectoryBatch]

    def arm(self, name: str) -> GradientArm:
        """Return the gradient called `name`."""
        return self._copied_gradient if self.engine.away and name == "accuquant" else gradient_arm(name)

    def errors(self) -> Tensor:
        """Return the end-point error of every held-out trajectory [N]; a batch is a unit."""
        mine = self.learner.get()
        # the first call of all sets what corrections count in: it is made before others need it
        here = 0 if all(correction.unit for correction in mine.corrections.values()) else 1
        here = here if self.engine.away and len(self.held_out) > 1 else len(self.held_out)
        found = (
            [held_out_errors(mine.network, self.process, self.steps, self.held_out[:here])] if here else []
        )
        compute = _Judged(self.learner, self.process, self.steps, self.held_out, *mine.state())
        there = [str(index) for index in range(here, len(self.held_out))]
        found += InMemory(self.engine).map("judging", there, compute, lambda: None)
        return torch.cat([errors.to(device_of(mine.network)) for errors in found])

    def _copied_gradient(
        self, process: DenoisingProcess, network: NetworkFn, segment: Segment, loss_fn: LossFn
    ) -> float:
        """Do what `gradient.accuquant` does."""
        latents, states = rollout(process, network, segment)
        loss, gradient = end_point_gradient(loss_fn, latents[-1], segment.target)
        mine = self.learner.get()
        compute = _StepGradient(
            self.learner,
            process,
            segment.batch,
            segment.steps.start,
            latents,
            states,
            gradient,
            *mine.state(),
        )
        names = [str(step) for step in segment.steps]
        for gradients in InMemory(self.engine).map("gradient", names, compute, lambda: None):
            for parameter, given in zip(mine.parameters, gradients, strict=True):
                if given is not None:
                    given = given.to(parameter.device)
                    parameter.grad = given if parameter.grad is None else parameter.grad.add_(given)
        return loss


@dataclass(frozen=True)
class _StepGradient:
    """Differentiates one step -> the gradient of each parameter, None where the step does not use it."""

    learner: PerWorker[Learner]
    process: DenoisingProcess
    batch: TrajectoryBatch
    first: int
    latents: Sequence[Tensor]
    states: Sequence[ProcessState]
    gradient: Tensor
    values: Sequence[Tensor]
    units: Sequence[float]

    def __call__(self, unit: str) -> list[Tensor | None]:
        learner, step = self.learner.get(), int(unit)
        learner.set_state(self.values, self.units)
        device = device_of(learner.network)
        generators = self.process.restore_state(self.states[step - self.first])
        predict = self.batch.to(device).bind(learner.network)
        before = self.latents[step - self.first].to(device)
        after = self.process.step(predict, before, step, generators)
        torch.autograd.backward(after, self.gradient.to(device))
        return [parameter.grad for parameter in learner.parameters]


@dataclass(frozen=True)
class _Judged:
    """Measures the end-point errors of one held-out batch."""

    learner: PerWorker[Learner]
    process: DenoisingProcess
    steps: range
    held_out: Sequence[TrajectoryBatch]
    values: Sequence[Tensor]
    units: Sequence[float]

    def __call__(self, unit: str) -> Tensor:
        learner = self.learner.get()
        learner.set_state(self.values, self.units)
        return held_out_errors(learner.network, self.process, self.steps, [self.held_out[int(unit)]])
