"""The stages of a calibration and how often each calls the network, from the settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import learning, output_search, sensitivity, shared_learning
from .calibrate import held_out_count
from .calibration_settings import CalibrationSettings
from .calls import Calls
from .descent import LearningSettings

STARTS = "prompts and first latents"
TRAJECTORIES = "full-precision trajectories"
SCALES = "initial scales"
REFINED = "refined scales"
ROUNDING = "weight rounding"
SENSITIVITY = "layer sensitivity"
SHARED = "weight scales and biases"
GROUPS = "step groups"


@dataclass(frozen=True)
class PlannedStage:
    """A stage as progress shows it, with its `units`; learning calls the network `calls` times at most."""

    name: str
    units: int
    calls: Calls


@dataclass(frozen=True)
class Plan:
    """What the settings ask for: `members` are the steps of each group, `layers` how many are quantized."""

    settings: CalibrationSettings
    members: Sequence[Sequence[int]]
    layers: int

    @property
    def steps(self) -> int:
        """The calls of the network in a trajectory."""
        return sum(map(len, self.members))

    @property
    def batches(self) -> int:
        """How many batches the trajectories make, the last of them perhaps a smaller one."""
        return -(-self.settings.num_trajectories // self.settings.batch_size)

    @property
    def calls_of_groups(self) -> list[int]:
        """The calls of the recording in each step group."""
        return [len(steps) * self.batches for steps in self.members]

    def stages(self) -> list[PlannedStage]:
        """Return the stages that run, in their order."""
        settings, held_out = self.settings, held_out_count(self.batches)
        recorded = sum(self.calls_of_groups)
        stages = [
            PlannedStage(TRAJECTORIES, recorded, Calls(forward=recorded)),
            PlannedStage(SCALES, self.layers, Calls()),
        ]
        if settings.refine:
            calls = output_search.count_calls(self.members, self.batches)
            stages.append(PlannedStage(REFINED, calls, Calls(forward=calls)))
        if settings.rounding != "nearest":
            stages.append(PlannedStage(ROUNDING, self.layers, Calls()))
        if settings.sensitivity or settings.float_budget:
            calls = sensitivity.count_calls(self.layers, self.steps)
            stages.append(PlannedStage(SENSITIVITY, self.layers, Calls(forward=calls)))
        if settings.trajectory_iterations:
            shared = LearningSettings(settings.gradient, settings.trajectory_iterations)
            calls_shared = shared_learning.count_calls(shared, self.steps, held_out)
            stages.append(PlannedStage(SHARED, settings.trajectory_iterations, calls_shared))
        iterations, learned_from = settings.group_iterations, max(1, self.batches - held_out)
        group = LearningSettings(settings.gradient, iterations, probe=settings.probe)
        each = [learning.count_calls(group, len(steps), held_out, learned_from) for steps in self.members]
        stages.append(PlannedStage(GROUPS, iterations * len(each), sum(each, Calls())))
        return stages
