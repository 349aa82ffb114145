"""From one unit of every stage to seconds and memory of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from accuquant.denoising.start import Start
from accuquant.networks.network import weight_shape
from accuquant.networks.room import Room

from .activations import sample_bytes
from .calls import Calls
from .plan import (
    GROUPS,
    REFINED,
    ROUNDING,
    SCALES,
    SENSITIVITY,
    SHARED,
    STARTS,
    TRAJECTORIES,
    Plan,
    PlannedStage,
)
from .rounding import rounding_work
from .row_factor import few_rows
from .row_store import PRECISE_WIDTH
from .trial import Trial, Unit

#: What torch keeps of a random state, in bytes.
_RANDOM_STATE = 5056
#: A learned number, its gradient, Adam's two moments and the best value so far, in float32.
_LEARNED = 4 * 5


@dataclass(frozen=True)
class Need:
    """Bytes at a stage's highest point: `network` and what is made of it, what one `batch` leaves in it.

    `recorded` are a batch's trajectories and samples, `inputs` what layers are rounded by, and their levels.
    """

    network: int = 0
    batch: int = 0
    recorded: int = 0
    inputs: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.network + self.batch + self.recorded + self.inputs

    def on(self, gpu: bool) -> tuple[int, int]:
        """Return the bytes on a device of its own memory, and in main memory, where all is without one."""
        device = self.network + self.batch
        return (device, self.recorded + self.inputs) if gpu else (0, self.total)


@dataclass(frozen=True)
class StageEstimate:
    """A stage's units of progress, calls of the network, seconds, and bytes at its highest point."""

    name: str
    units: int
    calls: Calls
    seconds: float
    need: Need

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return {**vars(self), "calls": vars(self.calls), "need": vars(self.need)}


class StageCosts:
    """Multiplies what a trial measured by what a plan counts."""

    def __init__(
        self,
        plan: Plan,
        trial: Trial,
        layers: Mapping[str, nn.Module],
        start: Start,
        room: Room,
    ) -> None:
        """Take one batch's `start`, and what `room` the process had with the network loaded."""
        self._plan, self._trial, self._rows, self._layers = plan, trial, trial.rows, layers
        self._base = room.held
        self._recorded = trajectory_bytes(start, plan, remembers=trial.remembers)
        self._samples = sample_bytes(trial.inputs.sizes(), plan.calls_of_groups)
        self._levels = sum(weight_shape(layer).numel() for layer in layers.values())

    def of(self, stage: PlannedStage) -> StageEstimate:
        """Return what `stage` takes."""
        return StageEstimate(
            stage.name, stage.units, stage.calls, self._seconds(stage), self._need(stage.name)
        )

    def of_starts(self, seconds: float, held: int) -> StageEstimate:
        """Return what it takes to prepare all prompts and first latents, `seconds` an image.

        `held` are the bytes with the text encoders.
        """
        images = self._plan.settings.num_trajectories
        return StageEstimate(STARTS, self._plan.batches, Calls(), seconds * images, Need(network=held))

    @property
    def disk(self) -> int:
        """The bytes that the work folder takes: trajectories, samples, and what layers are rounded by."""
        return self._recorded + self._samples + self._rows.disk

    def _seconds(self, stage: PlannedStage) -> float:
        trial, calls = self._trial, stage.calls
        if stage.name == TRAJECTORIES:
            return calls.forward * trial.sampled.seconds + self._summing()
        if stage.name == SCALES:
            once, group = trial.scales
            return once + group * len(self._plan.members)
        if stage.name == REFINED:
            return calls.forward * trial.refined.seconds
        if stage.name == ROUNDING:
            return self._rounding()
        if stage.name == SENSITIVITY:
            return calls.forward * trial.alone.seconds
        unit = self._learning_unit(stage.name)
        return trial.simulated.seconds + calls.forward * trial.judged.seconds + calls.backward * unit.seconds

    def _learning_unit(self, name: str) -> Unit:
        return self._trial.shared if name == SHARED else self._trial.group

    def _summing(self) -> float:
        shapes = [(layer.rows, layer.groups * layer.width**2) for layer in self._rows.sums]
        return sum(self._trial.summed.seconds(rows, rows * square) for rows, square in shapes)

    def _rounding(self) -> float:
        filed = {shape.name: shape.rows for shape in self._rows.files}
        work = [rounding_work(layer, filed.get(name)) for name, layer in self._layers.items()]
        columns, products = sum(columns for columns, _ in work), sum(products for _, products in work)
        summed = [shape for shape in self._rows.files if not few_rows(shape.rows, shape.width)]
        for layer in summed:  # the lower half of a covariance, in float32 where it is wide
            share = 0.5 if layer.width <= PRECISE_WIDTH else 0.25
            products += share * layer.groups * layer.rows * layer.width**2
        return self._trial.rounded.seconds(columns, products)

    def _need(self, name: str) -> Need:
        trial, batches = self._trial, self._plan.batches
        batch = self._recorded // batches  # the rest lies in the work folder
        kept = Need(network=self._base, recorded=batch)
        if name == TRAJECTORIES:
            samples = 2 * self._samples // batches  # at the end of a batch, what was sampled is joined
            return replace(
                kept, batch=trial.sampled.bytes, recorded=batch + samples, inputs=self._rows.memory
            )
        if name == SCALES:
            return replace(kept, recorded=2 * self._samples // max(1, len(self._layers)))
        if name == REFINED:
            return replace(kept, batch=trial.refined.bytes)
        if name == ROUNDING:
            return replace(kept, recorded=0, inputs=self._levels + self._widest())
        if name == SENSITIVITY:
            return replace(kept, inputs=self._levels, batch=trial.alone.bytes)
        steps = self._plan.settings.simulated_group_size if self._whole_graph(name) else 1
        activations = max(trial.judged.bytes, steps * self._learning_unit(name).bytes)
        network = self._base + trial.copy + _LEARNED * trial.learned
        return replace(kept, network=network, batch=activations, inputs=self._levels)

    def _whole_graph(self, name: str) -> bool:
        """Say whether a stage keeps what all steps leave behind, and not one step after the other."""
        return name == GROUPS and self._plan.settings.gradient == "exact"

    def _widest(self) -> int:
        """Return the bytes of the largest covariance and of the weight that is rounded by it."""
        widths = [layer.width for layer in (*self._rows.sums, *self._rows.files)]
        covariances = [(8 if width <= PRECISE_WIDTH else 4) * width**2 for width in widths]
        weights = max(weight_shape(layer).numel() for layer in self._layers.values())
        return max(covariances) + 3 * 8 * weights  # the weight, its errors and their products, in float64


def trajectory_bytes(start: Start, plan: Plan, *, remembers: bool) -> int:
    """Return what all trajectories take: latents before and after every step, random states, conditioning.

    A solver that `remembers` outputs keeps one more tensor of a latent's size a step.
    """
    images, steps = plan.settings.num_trajectories, plan.steps
    latent = start.latents[0].numel() * start.latents.element_size()
    conditioning = sum(t.numel() * t.element_size() for t in start.conditioning.to_tensors().values())
    random = _RANDOM_STATE * steps * len(start.generators) // len(start)
    return images * (latent * (steps + 1 + (steps if remembers else 0)) + random + conditioning // len(start))
