"""What a calibration will do on this device, before it does it: calls of the network, seconds, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accuquant._util.progress import Progress, Silent
from accuquant._util.scratch import scratch_folder
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.device import describe, device_of, repeatable
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.network import count_macs, quantizable_layers
from accuquant.networks.room import Room
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import PipelineStarter, open_starter
from accuquant.pipelines.task import Task
from accuquant.scales.placement_patterns import stays_float

from .calibration_settings import CalibrationSettings
from .calls import Calls
from .care import care_notes
from .placement import Placement, place
from .plan import Plan
from .remedies import remedies
from .seen_inputs import Recorded
from .stage_costs import StageCosts, StageEstimate
from .trial import Rehearsal


@dataclass(frozen=True)
class Estimate:
    """What `calibrate` will do with the same source and settings.

    `stages` in their order; learning may end earlier than they say. `int8_share` counts
    multiply-accumulates, `left_in_float` gives the reasons with the layers that they hold for. `care` says
    which layers get less than the others. `room` is what memory there is, `disk` what the work folder takes
    at most, in bytes. `remedies` is empty where all stages fit.
    """

    device: str
    layers: int
    int8_share: float
    left_in_float: Mapping[str, tuple[str, ...]]
    care: tuple[str, ...]
    stages: tuple[StageEstimate, ...]
    room: Room
    disk: int
    remedies: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def calls(self) -> Calls:
        """The network's calls in all stages, at most."""
        return sum((stage.calls for stage in self.stages), Calls())

    @property
    def fits(self) -> bool:
        """Whether memory suffices for every stage."""
        return not self.remedies

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return {
            **vars(self),
            "left_in_float": {reason: list(names) for reason, names in self.left_in_float.items()},
            "care": list(self.care),
            "room": vars(self.room),
            "stages": [stage.to_dict() for stage in self.stages],
            "remedies": list(self.remedies),
            "seconds": self.seconds,
            "calls": vars(self.calls),
            "fits": self.fits,
        }


def estimate(
    source: Source,
    settings: CalibrationSettings,
    *,
    task: Task | None = None,
    tf32: bool = False,
    progress: Progress | None = None,
) -> Estimate:
    """Return what `calibrate` with the same arguments will take, timed by a few calls; nothing is written.

    The pipeline prepares one batch, and each stage's unit of work runs a few times where the network is.
    Raises what `calibrate` raises before its first stage, UsageError for another method than AccuQuant's, and
    CalibrationError where memory does not suffice for one batch.
    """
    if settings.method != "accuquant":
        raise UsageError(
            "--dry-run",
            got=f"--method {settings.method}, whose stages are not timed",
            expected="AccuQuant's own method",
            remedy="Calibrate without --dry-run, or leave out --method",
        )
    if settings.rounding == "adaround":
        raise UsageError(
            "--dry-run",
            got="--rounding adaround, whose learning is not timed",
            expected="--rounding gptq or nearest",
            remedy="Calibrate without --dry-run, or with another rounding",
        )
    shown, device = StageWatch(progress or Silent()), device_of(source.network)
    with repeatable(device, tf32=tf32), memory_named(shown, device, settings.batch_size):
        return _estimate(source, settings, task or Task(), shown)


def _estimate(source: Source, settings: CalibrationSettings, task: Task, shown: Progress) -> Estimate:
    source = called_source(source, task, settings.simulated_steps)
    starter = open_starter(source, task, steps=settings.simulated_steps)
    process, network = starter.process, source.network
    groups = StepGroups.from_timesteps(
        process.timesteps,
        group_size=settings.simulated_group_size,
        num_train_timesteps=process.num_train_timesteps,
    )
    size = min(settings.batch_size, settings.num_trajectories)
    begun = time.perf_counter()
    (start,) = starter.starts(size, size, seed=settings.seed, progress=shown)
    beginning = (time.perf_counter() - begun) / size, Room.of(network).held
    starter.close()
    macs = count_macs(network, source.signature)
    placement = place(network, macs, include=settings.include, exclude=settings.exclude)
    plan = Plan(settings, groups.steps_of(process.timesteps), len(placement.quantized))
    layers = {name: quantizable_layers(network)[name] for name in placement.quantized}
    rehearsal = Rehearsal(network, process, start, groups, placement.quantized, settings)
    rehearsal.warm_up()  # from now on, this process holds what libraries keep once they have run
    room = Room.of(network)
    with scratch_folder("estimate") as folder:
        trial = rehearsal.run(plan.calls_of_groups, folder, shown)
    costs = StageCosts(plan, trial, layers, start, room)
    stages = [costs.of(stage) for stage in plan.stages()]
    if isinstance(starter, PipelineStarter):
        stages.insert(0, costs.of_starts(*beginning))
    recorded = Recorded(
        images=settings.num_trajectories,
        prompts=len(task.prompts) or settings.num_trajectories,
        batch=size,
        steps=plan.steps,
        calls=sum(plan.calls_of_groups),
    )
    return Estimate(
        device=describe(device_of(network)),
        layers=len(layers),
        int8_share=placement.int8_share,
        left_in_float=_left_in_float(placement, settings),
        care=_care(settings, trial.inputs.rounding_facts(layers, recorded)),
        stages=tuple(stages),
        room=room,
        disk=costs.disk,
        remedies=remedies(stages, room, settings),
    )


def _care(settings: CalibrationSettings, facts: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Return what layers get less than others, by `facts` on their rounding."""
    notes = care_notes({"rounding": facts}, seen="will be seen") if settings.rounding == "gptq" else ()
    if not settings.float_budget:
        return notes
    budget = f"Up to {settings.float_budget:.0%} of the multiply-accumulates more will be left in float"
    return *notes, f"{budget}, where layers prove the most sensitive."


def _left_in_float(placement: Placement, settings: CalibrationSettings) -> dict[str, tuple[str, ...]]:
    """Return the layers left in float, by the reason: what the user excluded, and what always is."""
    asked = {name for name in placement.float_layers if stays_float(name, ("*",), settings.exclude)}
    reasons = {
        "excluded by --exclude": tuple(n for n in placement.float_layers if n in asked),
        "float by default (ends, shortcuts, embeddings, modulation)": tuple(
            n for n in placement.float_layers if n not in asked
        ),
    }
    return {reason: names for reason, names in reasons.items() if names}
