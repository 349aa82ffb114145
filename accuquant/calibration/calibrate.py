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
from accuquant.channel_fold import ChannelFold
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.device import device_of, repeatable
from accuquant.networks.fold import fold_network
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.network import count_macs
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.source import Source
from accuquant.pipelines.source_job import source_job, source_roots
from accuquant.pipelines.starts import Starter, open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.units.cluster import Cluster, engine_of
from accuquant.units.job import Job
from accuquant.units.units import Engine

from .block_rounding import learn_levels
from .calibration_settings import CalibrationSettings
from .descent import LearningSettings
from .equalize import EQUALIZERS, check_places
from .group_units import describe_result, learn_groups
from .methods.method import Run
from .methods.recipe import rival_recipe
from .methods.registry import method_named
from .placement import Placement, place
from .preparation import plain_config, prepare
from .recording import Recorder
from .shared_learning import learn_shared
from .trajectory import TrajectoryBatch, record_batch
from .work_folder import WorkFolder


def calibrate(
    source: Source,
    settings: CalibrationSettings,
    *,
    output: Path,
    task: Task | None = None,
    tf32: bool = False,
    checkpoint: bool | None = None,
    cluster: Cluster | None = None,
    starter: Starter | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """Learn the quantization parameters of `source` and write them to `output`.

    `task` holds the prompts, images and guidance that the pipeline is sampled with; seeds alone otherwise.
    The network runs where it is (`source.to("cuda")`); all random numbers are drawn on the CPU, and products
    are in float32 unless `tf32`. `checkpoint` computes activations twice in place of keeping them, by default
    where memory is short (`checkpoint_blocks`): it changes no figure. `starter` begins the trajectories in
    place of the pipeline. The same settings and device give the
    same file bit for bit, on however many workers of a `cluster`, which have to see `output`. Finished parts
    are kept in `<output>.partial/`; a run that was interrupted goes on at its first unfinished unit of work.
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
        return _calibrate(
            source, settings, Path(output), task or Task(), tf32, checkpoint, cluster, starter, shown
        )


def _calibrate(
    source: Source,
    settings: CalibrationSettings,
    output: Path,
    task: Task,
    tf32: bool,
    checkpoint: bool | None,
    cluster: Cluster | None,
    starter: Starter | None,
    shown: Progress,
) -> Recipe:
    source = called_source(source, task, settings.simulated_steps)
    starter = starter or open_starter(source, task, steps=settings.simulated_steps)
    work = WorkFolder(output, _identity(source, settings, task) | _place(source, tf32))

    def job() -> Job:
        return source_job(source, tf32=tf32, sees=work.marker())

    with engine_of(cluster, job, source_roots(source), shown.message) as engine:
        folds = _folds(source, settings, starter, engine, shown)
        folded = replace(source, network=fold_network(source.network, folds)) if folds else source
        recipe = _compute(folded, settings, task, starter, work, engine, checkpoint, shown)
        recipe = replace(recipe, folds=folds, model_hash=source.model_hash) if folds else recipe
    recipe.save(output)
    work.remove()
    return recipe


def _folds(
    source: Source, settings: CalibrationSettings, starter: Starter, engine: Engine, shown: Progress
) -> tuple[ChannelFold, ...]:
    """Return what `settings.equalize` folds into the network, by a first batch of trajectories."""
    if settings.equalize is None:
        return ()
    if engine.away:
        raise UsageError(
            f"--equalize {settings.equalize}",
            got="workers, which open the network as it is on the disk",
            expected="one process",
            remedy="Leave out the options of the cluster, or --equalize",
        )
    process, placement = starter.process, _placed(source, settings)
    check_places(settings.equalize, source.network, placement)
    groups = StepGroups.from_timesteps(
        process.timesteps, group_size=len(process), num_train_timesteps=process.num_train_timesteps
    )
    some = range(min(settings.batch_size, settings.num_trajectories))
    shown.stage("first trajectories", len(process))
    batch = record_batch(
        source.network, process, starter.start(some, seed=settings.seed), lambda _step: shown.advance()
    )
    return EQUALIZERS[settings.equalize](Run(source, settings, process, groups, placement, [batch], shown))


def _compute(
    source: Source,
    settings: CalibrationSettings,
    task: Task,
    starter: Starter,
    work: WorkFolder,
    engine: Engine,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    process = starter.process
    groups = StepGroups.from_timesteps(
        process.timesteps,
        group_size=settings.simulated_group_size,
        num_train_timesteps=process.num_train_timesteps,
    )
    recorder = Recorder(source, settings, starter, groups, work, engine, shown)
    if (method := method_named(settings.method)).find is not None:
        placement = _placed(source, settings)
        method.check(source.network, placement)
        batches = recorder.record(None)
        starter.close()
        run = Run(source, settings, process, groups, placement, batches, shown)
        return rival_recipe(run, task, method.find(run))
    initial = work.load_initial()
    if initial is None:
        placement = _placed(source, settings)
        batches = recorder.record(placement)
        recorded = batches, recorder.inputs(placement)
        units = work.units(engine)
        initial = prepare(source, settings, task, process, groups, placement, recorded, shown, units)
        initial.save(work.initial)
    else:
        batches = recorder.record(None)
    starter.close()
    work.forget_preparation()
    return _learn(source, settings, process, initial, batches, work, engine, checkpoint, shown)


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
    engine: Engine,
    checkpoint: bool | None,
    shown: Progress,
) -> Recipe:
    learned_from, held_out = _split(batches)
    initial = _learn_rounding(source, settings, process, initial, (learned_from, held_out), work, shown)
    initial = _learn_shared(
        source, settings, process, initial, (learned_from, held_out), work, engine, checkpoint, shown
    )
    return learn_groups(
        source.network, process, initial, learned_from, held_out, settings,
        work=work, engine=engine, checkpoint=checkpoint, shown=shown,
    )  # fmt: skip


def _learn_rounding(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    initial: Recipe,
    batches: tuple[Sequence[TrajectoryBatch], Sequence[TrajectoryBatch]],
    work: WorkFolder,
    shown: Progress,
) -> Recipe:
    """Return `initial` with learned levels where they are asked for."""
    if settings.rounding != "adaround":
        return initial
    done = work.load_levels()
    if done is not None:
        return done
    run = Run(source, settings, process, initial.groups, _placed(source, settings), batches[0], shown)
    recipe, result = learn_levels(run, initial, batches[1])
    shown.message(f"weights of blocks: {describe_result(result)}")
    recipe = replace(recipe, calibration={**recipe.calibration, "learned_rounding": vars(result)})
    recipe.save(work.levels)
    return recipe


def _learn_shared(
    source: Source,
    settings: CalibrationSettings,
    process: DenoisingProcess,
    initial: Recipe,
    batches: tuple[Sequence[TrajectoryBatch], Sequence[TrajectoryBatch]],
    work: WorkFolder,
    engine: Engine,
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
        checkpoint=checkpoint, kept=kept, engine=engine,
    )  # fmt: skip
    shown.message(f"weight scales and biases: {describe_result(result)}")
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
