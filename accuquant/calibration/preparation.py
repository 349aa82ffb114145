"""What calibration does between recording and learning: find initial scales, round the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import accuquant
from accuquant._util.progress import Progress
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of
from accuquant.networks.mapped_pages import give_back
from accuquant.networks.network import held_weight, quantizable_layers
from accuquant.pipelines.diffusers_internals import VOLATILE_CONFIG
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe
from accuquant.units.units import Units

from .activations import layer_qparams
from .calibration_settings import CalibrationSettings
from .care import care_notes, rounding_facts
from .output_search import count_calls, refine_scales
from .placement import Placement
from .recorded_inputs import RecordedInputs
from .rounding import compensate
from .sensitivity import measure_sensitivity, spend_float_budget
from .trajectory import TrajectoryBatch
from .unfolding import input_width


def prepare(
    source: Source,
    settings: CalibrationSettings,
    task: Task,
    process: DenoisingProcess,
    groups: StepGroups,
    placement: Placement,
    recorded: tuple[Sequence[TrajectoryBatch], RecordedInputs],
    shown: Progress,
    units: Units,
) -> Recipe:
    """Return the recipe that learning starts from.

    `recorded` are the trajectories and what the layers saw on them; `units` may have results of an earlier
    run.
    """
    batches, inputs = recorded
    qparams = _first_scales(source, settings, groups, placement, inputs, shown, units)
    if settings.refine:
        shown.stage("refined scales", count_calls(groups.steps_of(process.timesteps), len(batches)))
        qparams = refine_scales(
            source.network, process, groups, qparams, batches, progress=shown, units=units
        )
    rounded, facts = _rounded(source, qparams, inputs, shown, units)
    qparams |= rounded
    errors: dict[str, float] = {}
    if settings.sensitivity or settings.float_budget:
        shown.stage("layer sensitivity", len(qparams))
        errors = measure_sensitivity(
            source.network, process, groups, qparams, batches[-1], progress=shown, units=units
        )
    left = spend_float_budget(placement, errors, settings.float_budget) if settings.float_budget else []
    if left:
        shown.message(f"left in float by the budget: {', '.join(left)}")
    placement = placement.without(left)
    rounding = {"rounding": {name: facts[name] for name in placement.quantized if name in facts}}
    for note in care_notes(rounding):
        shown.message(note)
    return Recipe(
        groups=groups,
        layers={name: qparams[name] for name in placement.quantized},
        signature=source.signature,
        scheduler=plain_config(dict(source.scheduler.config)),
        model_hash=source.model_hash,
        calibration={
            **calibration_of(source, settings, task, process, placement),
            "float_by_budget": left,
            "sensitivity": errors,
            **rounding,
        },
    )


def calibration_of(
    source: Source,
    settings: CalibrationSettings,
    task: Task,
    process: DenoisingProcess,
    placement: Placement,
) -> dict[str, Any]:
    """Return what the recipe of every method says of its calibration."""
    return {
        "settings": settings.to_dict(),
        "task": task.to_dict(),
        "guidance": process.guidance.to_dict(),
        "source": source.name,
        "loras": [lora.to_dict() for lora in source.loras],
        "loading": source.loading.to_dict(),
        "pipeline_class": source.pipeline_class,
        "int8_mac_share": placement.int8_share,
        "float_layers": list(placement.float_layers),
        "accuquant_version": accuquant.__version__,
        "torch_version": torch.__version__,
    }


def _first_scales(
    source: Source,
    settings: CalibrationSettings,
    groups: StepGroups,
    placement: Placement,
    inputs: RecordedInputs,
    shown: Progress,
    units: Units,
) -> dict[str, LayerQParams]:
    """Return what an observer finds for each layer by itself; a layer is a unit of work."""
    layers = quantizable_layers(source.network)

    def observe(name: str) -> dict[str, Any]:
        found = layer_qparams(
            name,
            layers[name],
            inputs.samples(name, len(groups)),
            weight_bits=settings.weight_bits,
            activation_bits=settings.activation_bits,
            observer=settings.observer,
            affine=settings.affine,
            format=settings.format,
        )
        return _to_tree(found)

    shown.stage("initial scales", len(placement.quantized))
    found = units.map("scales", placement.quantized, observe, shown.advance, anywhere=True)
    return {name: _from_tree(tree) for name, tree in zip(placement.quantized, found, strict=True)}


def _rounded(
    source: Source,
    qparams: Mapping[str, LayerQParams],
    inputs: RecordedInputs,
    shown: Progress,
    units: Units,
) -> tuple[dict[str, LayerQParams], dict[str, dict[str, float]]]:
    """Return the qparams of all rounded layers, and what each rounding was based on; a layer is a unit."""
    network, layers = source.network, quantizable_layers(source.network)

    def round_one(name: str) -> dict[str, Any]:
        moments = inputs.moments(name)
        # a worker's network has a device of its own
        rounded = compensate(layers[name], qparams[name], moments, device_of(network))
        give_back([held_weight(layers[name])])  # levels take their place, a quarter of them
        return {"qparams": _to_tree(rounded), "facts": rounding_facts(layers[name], moments)}

    # the widest first: the memory that its covariance takes is the levels' of all others later
    names = sorted(inputs.rounded, key=lambda name: -input_width(layers[name]))
    shown.stage("weight rounding", len(names))
    computed = units.map("rounding", names, round_one, shown.advance)
    found = dict(zip(names, computed, strict=True))
    return (
        {name: _from_tree(tree["qparams"]) for name, tree in found.items()},
        {name: tree["facts"] for name, tree in found.items()},
    )


def _to_tree(qparams: LayerQParams) -> dict[str, Any]:
    """Return the fields of `qparams`, arrays as tensors."""
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in vars(qparams).items()
    }


def _from_tree(tree: Mapping[str, Any]) -> LayerQParams:
    plain = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in tree.items()}
    return LayerQParams(**plain | {"weight_shape": tuple(tree["weight_shape"])})


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration as JSON values, without what changes from file to file."""
    kept = {k: v for k, v in config.items() if k not in VOLATILE_CONFIG}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
