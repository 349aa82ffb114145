"""Calibrate: from a trained pipeline to a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import accuquant
from accuquant.denoising import DenoisingProcess
from accuquant.errors import CalibrationError
from accuquant.groups import StepGroups
from accuquant.network import count_macs, model_hash
from accuquant.pipelines import Source
from accuquant.progress import Progress, Silent
from accuquant.recipe import GroupResult, Recipe
from accuquant.simulate import quantize_network, quantized_layers

from .activations import ActivationSampler, Samples, initial_qparams
from .learning import LearningSettings, learn_group
from .placement import place
from .sensitivity import measure_sensitivity, spend_float_budget
from .settings import CalibrationSettings
from .trajectory import TrajectoryBatch, record_trajectories
from .work_folder import WorkFolder


def calibrate(
    source: Source, settings: CalibrationSettings, *, output: Path, progress: Progress | None = None
) -> Recipe:
    """Learn the quantization parameters of `source` and write them to `output`.

    The same settings give the same file bit for bit. Finished parts are kept in `<output>.partial/`;
    a run that was interrupted goes on at its first unfinished step group. AccuQuant
    (arXiv 2510.20348): both branches fork from the full-precision latent at the start of a group,
    the loss compares the end points.
    """
    shown = progress or Silent()
    process = DenoisingProcess(source.scheduler, settings.steps)
    groups = StepGroups.from_timesteps(
        process.timesteps,
        group_size=settings.group_size,
        num_train_timesteps=process.num_train_timesteps,
    )
    work = WorkFolder(Path(output), _identity(source, settings))
    batches = work.load_trajectories(process)
    initial = work.load_initial()
    if batches is None or initial is None:
        batches, initial = _prepare(source, settings, process, groups, work, shown)
    recipe = _learn(source, settings, process, initial, batches, work, shown)
    recipe.save(output)
    work.remove()
    return recipe


def _identity(source: Source, settings: CalibrationSettings) -> dict[str, Any]:
    return {
        **settings.to_dict(),
        "model_hash": model_hash(source.network),
        "scheduler": _plain(dict(source.scheduler.config)),
        "version": accuquant.__version__,
    }


def _prepare(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    groups: StepGroups,
    work: WorkFolder,
    shown: Progress,
) -> tuple[list[TrajectoryBatch], Recipe]:
    """Record the trajectories, place the quantizers, find their initial scales."""
    macs = count_macs(source.network, source.signature)
    placement = place(source.network, macs, include=settings.include, exclude=settings.exclude)
    batches, samples = _record(source, settings, process, groups, placement.quantized, shown)
    work.save_trajectories(batches)
    shown.stage("initial scales", len(samples))
    qparams = initial_qparams(
        source.network,
        samples,
        weight_bits=settings.weight_bits,
        activation_bits=settings.activation_bits,
        observer=settings.observer,
        affine=settings.affine,
    )
    shown.stage("layer sensitivity", len(qparams))
    errors = measure_sensitivity(
        source.network, process, groups, qparams, batches[-1], progress=shown
    )
    left = spend_float_budget(placement, errors, settings.float_budget)
    placement = placement.without(left)
    if left:
        shown.message(f"left in float by the budget: {', '.join(left)}")
    recipe = Recipe(
        groups=groups,
        layers={name: qparams[name] for name in placement.quantized},
        signature=source.signature,
        scheduler=_plain(dict(source.scheduler.config)),
        model_hash=model_hash(source.network),
        calibration={
            "settings": settings.to_dict(),
            "source": source.name,
            "pipeline_class": source.pipeline_class,
            "int8_mac_share": placement.int8_share,
            "float_layers": list(placement.float_layers),
            "float_by_budget": left,
            "sensitivity": errors,
            "accuquant_version": accuquant.__version__,
            "torch_version": torch.__version__,
        },
    )
    recipe.save(work.initial)
    return batches, recipe


def _record(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    groups: StepGroups,
    names: Sequence[str],
    shown: Progress,
) -> tuple[list[TrajectoryBatch], Samples]:
    batch_count = -(-settings.num_trajectories // settings.batch_size)
    shown.stage("full-precision trajectories", batch_count * len(process))
    group_of = [groups.find(t) for t in process.timesteps]
    calls = [group_of.count(g) * batch_count for g in range(len(groups))]
    sampler = ActivationSampler(names, calls, settings.seed)

    def before_step(step: int) -> None:
        sampler.group = group_of[step]
        shown.advance()

    sizes = source.signature.sizes
    with sampler.watch(source.network):
        batches = record_trajectories(
            source.network,
            process,
            source.signature.sample.resolve(sizes | {"batch": 1})[1:],
            num_trajectories=settings.num_trajectories,
            batch_size=settings.batch_size,
            seed=settings.seed,
            conditioning=_conditioning(source, settings),
            before_step=before_step,
        )
    return batches, sampler.samples()


def _conditioning(source: Source, settings: CalibrationSettings) -> dict[str, Tensor]:
    """Draw what conditions each trajectory: class labels, evenly spread."""
    names = [spec.name for spec in source.signature.conditioning]
    if not names:
        return {}
    classes = getattr(source.network.config, "num_class_embeds", None)
    if names != ["class_labels"] or classes is None:
        raise CalibrationError(
            f"pipeline '{source.name}'",
            got=f"a network that takes {', '.join(names)}",
            expected="an unconditional or a class-conditional pipeline",
            remedy="Text-guided pipelines are not supported yet",
        )
    return {"class_labels": torch.arange(settings.num_trajectories) % int(classes)}


def _learn(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    initial: Recipe,
    batches: Sequence[TrajectoryBatch],
    work: WorkFolder,
    shown: Progress,
) -> Recipe:
    network = quantize_network(source.network, initial.layers.values(), initial.groups)
    layers = quantized_layers(network)
    learned_from, held_out = _split(batches)
    learning = LearningSettings(settings.gradient, settings.iterations, settings.learning_rate)
    results: list[GroupResult] = []
    for group, members in enumerate(initial.groups.steps_of(process.timesteps)):
        title = f"step group {group + 1}/{len(initial.groups)}"
        shown.stage(title, settings.iterations)
        done = work.load_group(group)
        if done is None:
            steps = range(members[0], members[-1] + 1)
            result = learn_group(
                network, process, steps, group, learned_from, held_out, learning,
                seed=settings.seed * 10_007 + group, progress=shown.advance,
            )  # fmt: skip
            scales = {name: layer.scale_of(group) for name, layer in layers.items()}
            work.save_group(group, scales, result)
        else:
            scales, result = done
            shown.advance(settings.iterations)
        for name, layer in layers.items():
            layer.set_scale(group, scales[name])
        results.append(result)
        shown.message(f"{title}: {_describe(result)}")
    return replace(
        initial,
        layers={name: layer.learned_qparams() for name, layer in layers.items()},
        results=tuple(results),
    )


def _split(batches: Sequence[TrajectoryBatch]) -> tuple[Sequence[TrajectoryBatch], Sequence[TrajectoryBatch]]:
    """Hold out a quarter of the batches; with one batch, it is learned from and judged by."""
    count = max(1, len(batches) // 4)
    return batches[:-count] or batches, batches[-count:]


def _describe(result: GroupResult) -> str:
    change = f"loss {result.initial_loss:.3g} -> {result.final_loss:.3g}"
    return change if result.status == "learned" else f"{change} ({result.status}: {result.note})"


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration as JSON values, without what changes from file to file."""
    kept = {k: v for k, v in config.items() if k not in ("_name_or_path", "_diffusers_version")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
