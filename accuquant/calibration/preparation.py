"""What calibration does before it learns: record, place, find initial scales, round the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import accuquant
from accuquant._util.progress import Progress
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, model_hash, quantizable_layers
from accuquant.pipelines.diffusers_internals import VOLATILE_CONFIG
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import Starter
from accuquant.pipelines.task import Task
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe

from .activations import ActivationSampler, Samples, initial_qparams
from .calibration_settings import CalibrationSettings
from .care import care_notes, rounding_facts
from .input_moments import MomentSampler
from .output_search import count_calls, refine_scales
from .placement import Placement, place
from .rounding import compensate
from .sensitivity import measure_sensitivity, spend_float_budget
from .trajectory import TrajectoryBatch, place_of, record_from


@dataclass(frozen=True)
class Recording:
    """The full-precision trajectories and what every layer saw on them."""

    batches: list[TrajectoryBatch]
    samples: Samples
    moments: MomentSampler


def prepare(
    source: Source,
    settings: CalibrationSettings,
    task: Task,
    starter: Starter,
    groups: StepGroups,
    shown: Progress,
    folder: Path,
) -> tuple[list[TrajectoryBatch], Recipe]:
    """Record the trajectories, choose the layers, find the qparams that learning starts from.

    What does not fit into memory lies in `folder`/inputs meanwhile.
    """
    process = starter.process
    starts = starter.starts(
        settings.num_trajectories, settings.batch_size, seed=settings.seed, progress=shown
    )
    starter.close()
    macs = count_macs(source.network, source.signature)
    placement = place(source.network, macs, include=settings.include, exclude=settings.exclude)
    inputs = folder / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)  # of a run that was killed
    inputs.mkdir()
    recording = _record(source, settings, process, starts, groups, placement, shown, inputs)
    qparams, facts = _initial_qparams(source, settings, process, groups, recording, shown)
    shutil.rmtree(inputs)
    errors: dict[str, float] = {}
    if settings.sensitivity or settings.float_budget:
        shown.stage("layer sensitivity", len(qparams))
        errors = measure_sensitivity(
            source.network, process, groups, qparams, recording.batches[-1], progress=shown
        )
    left = spend_float_budget(placement, errors, settings.float_budget) if settings.float_budget else []
    if left:
        shown.message(f"left in float by the budget: {', '.join(left)}")
    placement = placement.without(left)
    rounding = {"rounding": {name: facts[name] for name in placement.quantized if name in facts}}
    for note in care_notes(rounding):
        shown.message(note)
    recipe = Recipe(
        groups=groups,
        layers={name: qparams[name] for name in placement.quantized},
        signature=source.signature,
        scheduler=plain_config(dict(source.scheduler.config)),
        model_hash=model_hash(source.network),
        calibration={
            "settings": settings.to_dict(),
            "task": task.to_dict(),
            "guidance": process.guidance.to_dict(),
            "source": source.name,
            "loras": [lora.to_dict() for lora in source.loras],
            "loading": source.loading.to_dict(),
            "pipeline_class": source.pipeline_class,
            "int8_mac_share": placement.int8_share,
            "float_layers": list(placement.float_layers),
            "float_by_budget": left,
            "sensitivity": errors,
            **rounding,
            "accuquant_version": accuquant.__version__,
            "torch_version": torch.__version__,
        },
    )
    return recording.batches, recipe


def _initial_qparams(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    groups: StepGroups,
    recording: Recording,
    shown: Progress,
) -> tuple[dict[str, LayerQParams], dict[str, dict[str, float]]]:
    """Return the qparams of all layers, and what the rounding of each was based on."""
    shown.stage("initial scales", 1)
    qparams = initial_qparams(
        source.network,
        recording.samples,
        weight_bits=settings.weight_bits,
        activation_bits=settings.activation_bits,
        observer=settings.observer,
        affine=settings.affine,
    )
    if settings.refine:
        members = groups.steps_of(process.timesteps)
        shown.stage("refined scales", count_calls(members, len(recording.batches)))
        qparams = refine_scales(source.network, process, groups, qparams, recording.batches, progress=shown)
    names, layers = recording.moments.names(), quantizable_layers(source.network)
    facts = {}
    shown.stage("weight rounding", len(names))
    for name in names:
        moments = recording.moments.take(name)
        qparams[name] = compensate(layers[name], qparams[name], moments)
        facts[name] = rounding_facts(layers[name], moments)
        shown.advance()
    return qparams, facts


def _record(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    starts: Sequence[Start],
    groups: StepGroups,
    placement: Placement,
    shown: Progress,
    folder: Path,
) -> Recording:
    shown.stage("full-precision trajectories", len(starts) * len(process))
    group_of = [groups.find(t) for t in process.timesteps]
    calls = [group_of.count(g) * len(starts) for g in range(len(groups))]
    sampler = ActivationSampler(placement.quantized, calls, settings.seed)
    layers = quantizable_layers(source.network)
    rounded = {name: layers[name] for name in placement.quantized if settings.rounding == "gptq"}
    moments = MomentSampler(rounded, sum(calls), settings.seed, folder)

    def before_step(step: int) -> None:
        sampler.group, sampler.place = group_of[step], place_of(step, process)
        shown.advance()

    with sampler.watch(source.network), moments.watch():
        batches = record_from(source.network, process, starts, before_step=before_step)
    return Recording(batches, sampler.samples(), moments)


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration as JSON values, without what changes from file to file."""
    kept = {k: v for k, v in config.items() if k not in VOLATILE_CONFIG}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
