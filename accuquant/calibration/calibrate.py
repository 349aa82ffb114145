"""Calibrate: from a trained pipeline to a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import accuquant
from accuquant._util.files import check_new_file
from accuquant._util.lock import only_writer
from accuquant._util.progress import Progress, Silent
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of, repeatable
from accuquant.networks.mapped_pages import give_back_weights
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.network import count_macs
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import GroupResult, Recipe

from .block_checkpoints import checkpoint_blocks
from .calibration_settings import CalibrationSettings
from .descent import LearningSettings
from .learning import learn_group
from .methods.method import Run
from .methods.recipe import rival_recipe
from .methods.registry import method_named
from .placement import Placement, place
from .preparation import plain_config, prepare
from .recording import Recorder
from .shared_learning import learn_shared
from .trajectory import TrajectoryBatch
from .work_folder import WorkFolder


def calibrate(
    source: Source,
    settings: CalibrationSettings,
    *,
    output: Path,
    task: Task | None = None,
    tf32: bool = False,
    checkpoint: bool | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """Learn the quantization parameters of `source` and write them to `output`.

    `task` holds the prompts, images and guidance that the pipeline is sampled with; seeds alone otherwise.
    The network runs where it is (`source.to("cuda")`); all random numbers are drawn on the CPU, and products
    are in float32 unless `tf32`. `checkpoint` computes activations twice in place of keeping them, by default
    where memory is short (`checkpoint_blocks`): it changes no figure. The same settings and device give the
    same file bit for bit. Finished parts are kept in `<output>.partial/`; a run that was interrupted goes on
    at its first unfinished unit of work.
    AccuQuant (arXiv 2510.20348): both branches fork from the full-precision latent at the start of a group,
    the loss compares the end points. Raises UsageError where `output` is a folder, or where another process
    calibrates into it, CalibrationError with the stage where memory runs out.
    """
    check_new_file("output", output)
    shown, device = StageWatch(progress or Silent()), device_of(source.network)
    with (
        only_writer(Path(output)),
        repeatable(device, tf32=tf32),
        memory_named(shown, device, settings.batch_size),
    ):
        return _calibrate(source, settings, Path(output), task or Task(), tf32, checkpoint, shown)


def _calibrate(
    source: Source,
    settings: CalibrationSettings,
    output: Path,
    task: Task,
    tf32: bool,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    starter = open_starter(source, task, steps=settings.simulated_steps)
    process = starter.process
    groups = StepGroups.from_timesteps(
        process.timesteps,
        group_size=settings.simulated_group_size,
        num_train_timesteps=process.num_train_timesteps,
    )
    work = WorkFolder(output, _identity(source, settings, task) | _place(source, tf32))
    recorder = Recorder(source, settings, starter, groups, work, shown)
    if (method := method_named(settings.method)).find is not None:
        batches = recorder.record(None)
        starter.close()
        placement = _placed(source, settings)
        run = Run(source, settings, process, groups, placement, batches, shown)
        recipe = rival_recipe(run, task, method.find(run))
        recipe.save(output)
        work.remove()
        return recipe
    initial = work.load_initial()
    if initial is None:
        placement = _placed(source, settings)
        batches = recorder.record(placement)
        recorded = batches, recorder.inputs(placement)
        initial = prepare(source, settings, task, process, groups, placement, recorded, shown, work.units)
        initial.save(work.initial)
    else:
        batches = recorder.record(None)
    starter.close()
    work.forget_preparation()
    recipe = _learn(source, settings, process, initial, batches, work, checkpoint, shown)
    recipe.save(output)
    work.remove()
    return recipe


def _placed(source: Source, settings: CalibrationSettings) -> Placement:
    macs = count_macs(source.network, source.signature)
    return place(source.network, macs, include=settings.include, exclude=settings.exclude)


def _identity(source: Source, settings: CalibrationSettings, task: Task) -> dict[str, Any]:
    return {
        **settings.to_dict(),
        "task": task.to_dict(),
        "loras": [lora.to_dict() for lora in source.loras],
        "without": list(source.loading.without),
        "model_hash": source.model_hash,
        "scheduler": plain_config(dict(source.scheduler.config)),
        "version": accuquant.__version__,
    }


def _place(source: Source, tf32: bool) -> dict[str, Any]:
    """Return where an unfinished calibration can go on: elsewhere, figures differ in their last digits."""
    return {"device": device_of(source.network).type, "tf32": tf32, "torch": torch.__version__}


def _learn(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    initial: Recipe,
    batches: Sequence[TrajectoryBatch],
    work: WorkFolder,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    learned_from, held_out = _split(batches)
    initial = _learn_shared(
        source, settings, process, initial, (learned_from, held_out), work, checkpoint, shown
    )
    network = quantize_network(source.network, initial.layers.values(), initial.groups)
    give_back_weights(source.network, initial.layers)
    if settings.group_iterations:
        checkpoint_blocks(network, process, batches[0], checkpoint)
    layers = quantized_layers(network)
    learning = LearningSettings(
        settings.gradient, settings.group_iterations, settings.learning_rate, settings.probe
    )
    results: list[GroupResult] = []
    for group, members in enumerate(initial.groups.steps_of(process.timesteps)):
        title = f"step group {group + 1}/{len(initial.groups)}"
        shown.stage(title, settings.group_iterations)
        done = work.load_group(group)
        if done is None:
            steps, kept = range(members[0], members[-1] + 1), work.group_state(group)
            result = learn_group(
                network, process, steps, group, learned_from, held_out, learning,
                seed=settings.seed * 10_007 + group, progress=shown.advance, kept=kept,
            )  # fmt: skip
            scales = {name: layer.scale_of(group) for name, layer in layers.items()}
            work.save_group(group, scales, result)
            kept.remove()
        else:
            scales, result = done
            shown.advance(settings.group_iterations)
        for name, layer in layers.items():
            layer.set_scale(group, scales[name])
        results.append(result)
        if settings.group_iterations:
            shown.message(f"{title}: {_describe(result)}")
    return replace(
        initial,
        layers={name: layer.learned_qparams() for name, layer in layers.items()},
        results=tuple(results),
    )


def _learn_shared(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    initial: Recipe,
    batches: tuple[Sequence[TrajectoryBatch], Sequence[TrajectoryBatch]],
    work: WorkFolder,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    """Return `initial` with learned weight scales and biases; `batches` are learned from, and held out."""
    if settings.trajectory_iterations == 0:
        return initial
    done = work.load_shared()
    if done is not None:
        return done
    shown.stage("weight scales and biases", settings.trajectory_iterations)
    kept = work.shared_state
    recipe, result = learn_shared(
        source.network, process, initial, *batches,
        LearningSettings(settings.gradient, settings.trajectory_iterations, settings.shared_learning_rate),
        seed=settings.seed * 10_007 + len(initial.groups), progress=shown.advance,
        checkpoint=checkpoint, kept=kept,
    )  # fmt: skip
    shown.message(f"weight scales and biases: {_describe(result)}")
    recipe = replace(recipe, calibration={**recipe.calibration, "shared_learning": vars(result)})
    recipe.save(work.shared)
    kept.remove()
    return recipe


def held_out_count(batches: int) -> int:
    """Return how many of `batches` judge."""
    return max(1, batches // 4)


def _split(batches: Sequence[TrajectoryBatch]) -> tuple[Sequence[TrajectoryBatch], Sequence[TrajectoryBatch]]:
    """Hold out a quarter of the batches; with one batch, it is learned from and judged by."""
    count = held_out_count(len(batches))
    return batches[:-count] or batches, batches[-count:]


def _describe(result: GroupResult) -> str:
    change = f"loss {result.initial_loss:.3g} -> {result.final_loss:.3g}"
    if result.status != "learned":
        return f"{change} ({result.status}: {result.note})"
    return f"{change} ({result.note})" if result.note else change
