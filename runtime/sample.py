"""Sample images from an exported folder with numpy alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from accuquant._util.progress import Steps
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import FEED_FORWARD, Manifest
from accuquant.runtime.class_labels import labels_of_images
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.loop_profile import LoopProfile, counted
from accuquant.runtime.noise_schedule import Float32Array
from accuquant.runtime.one_step import check_one_step, make_images
from accuquant.runtime.runner import Array
from accuquant.runtime.samplers import Network, Schedule, StepCallback, sample_ddim, sample_ddpm
from accuquant.runtime.scheduler_config import SchedulerConfig
from accuquant.runtime.torch_noise import TorchNoise

_DEFAULT_BATCH = 8
_PIPELINES = ("DDIMPipeline", "DDPMPipeline")


def sample_images(
    folder: str | os.PathLike[str],
    *,
    engine: str = "openvino",
    num_images: int = 16,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    eta: float = 0.0,
    class_labels: Sequence[int] | None = None,
    progress: Steps | None = None,
    callback: StepCallback | None = None,
    profile: LoopProfile | None = None,
    **options: Any,
) -> Float32Array:
    """Sample `num_images` images with an engine -> float32 [N, H, W, C] in [0, 1].

    Image k comes from seed + k: the same image in any batch size, and the one that a diffusers
    pipeline makes with generator=[torch.Generator().manual_seed(seed + k), ...]. `steps` None takes
    the calibrated number. `class_labels` has one label an image, for a class-conditional network; None
    gives image k the class k modulo the number of classes. `callback(step, timestep, latents)`
    runs after each step of each batch, batches in order. `profile` counts where the seconds go. `options` go
    to the engine. Raises UsageError for a folder whose pipeline or scheduler the numpy loop does not know.
    """
    with counted(profile, "loading", then="rest"):
        opened = EngineModel.from_folder(folder, engine, **options)
    with opened as model:
        model.profile = profile
        generator = model.manifest.pipeline_class == FEED_FORWARD
        schedule = None if generator else _schedule_of(Path(folder), model.manifest, steps)
        if schedule is None:
            check_one_step(model.manifest, steps, eta)
        _check_counts(num_images, batch_size)
        labels = labels_of_images(Path(folder), model.manifest, num_images, class_labels)
        size = batch_size or _default_batch(model, num_images)
        count = 1 if schedule is None else len(schedule.timesteps)
        ticker = _Ticker(progress, callback, count * -(-num_images // size))
        batches = []
        for first in range(0, num_images, size):
            indices = range(first, min(first + size, num_images))
            seeds = [seed + k for k in indices]
            conditioning = {} if labels is None else {"class_labels": labels[indices.start : indices.stop]}
            with counted(profile, "scheduler"):
                batches.append(
                    make_images(model, seeds, callback=ticker)
                    if schedule is None
                    else sample_latents(model, schedule, seeds, conditioning, eta=eta, callback=ticker)
                )
        with counted(profile, "loading"):
            model.close()
    return to_images(np.concatenate(batches))


def _schedule_of(folder: Path, manifest: Manifest, steps: int | None) -> Schedule:
    config = sampler_config(folder, manifest)
    try:
        return Schedule.create(config, manifest.steps(steps))
    except UsageError as fault:
        if steps is not None or manifest.num_inference_steps is None:
            raise
        raise EngineError(  # nobody gave a wrong option: the files contradict each other
            "exported folder",
            got=f"{manifest.num_inference_steps} calibrated steps; {fault.subject} {fault.got}",
            expected=fault.expected,
            remedy="Give --steps, or run `accuquant export` again",
        ) from fault


def runs_without_torch(folder: Path, manifest: Manifest) -> bool:
    """Say whether numpy alone drives this folder: a generator, or a pixel pipeline with a known sampler."""
    if manifest.pipeline_class == FEED_FORWARD:
        return True
    try:
        sampler_config(folder, manifest)
    except UsageError:
        return False
    return True


def sampler_config(folder: Path, manifest: Manifest) -> SchedulerConfig:
    """Return the sampler of an unconditional pixel pipeline. Raises UsageError for another pipeline."""
    if manifest.pipeline_class not in _PIPELINES or manifest.signature.architecture != "UNet2DModel":
        raise UsageError(
            f"pipeline {manifest.pipeline_class}",
            got=f"a network {manifest.signature.architecture} that the numpy loop does not drive",
            expected=f"{' or '.join(_PIPELINES)} with a UNet2DModel",
            remedy="Sample with diffusers: pipe.unet = EngineUNet.from_pretrained(folder)",
        )
    # diffusers' DDIMPipeline turns whatever scheduler it is given into DDIM.
    ddim = manifest.pipeline_class == "DDIMPipeline"
    return SchedulerConfig.from_folder(folder, "DDIMScheduler" if ddim else None)


def sample_latents(
    model: EngineModel,
    schedule: Schedule,
    seeds: Sequence[int],
    conditioning: Mapping[str, Array] | None = None,
    *,
    eta: float = 0.0,
    callback: StepCallback | None = None,
) -> Float32Array:
    """Run the whole loop for one batch, one seed a sample -> the last latents [B, C, H, W]."""
    shape = model.manifest.signature.sample.resolve(model.manifest.signature.sizes | {"batch": 1})
    noises = [TorchNoise(seed) for seed in seeds]

    def draw() -> Float32Array:
        return np.concatenate([noise.randn((1, *shape[1:])) for noise in noises])

    network: Network = partial(_call, model, conditioning)
    if schedule.config.scheduler == "DDIMScheduler":
        return sample_ddim(network, draw(), schedule, draw, eta=eta, callback=callback)
    return sample_ddpm(network, draw(), schedule, draw, callback=callback)


def to_images(latents: Float32Array) -> Float32Array:
    """Map pixel latents [N, C, H, W] in [-1, 1] to images [N, H, W, C] in [0, 1]."""
    if not np.isfinite(latents).all():
        raise EngineError(
            "sampled images",
            got="values that are not finite",
            expected="finite values",
            remedy="The network diverges at this number of steps; take more steps, or verify the export",
        )
    images: Float32Array = np.clip(latents / 2 + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images)


def _call(
    model: EngineModel, conditioning: Mapping[str, Array] | None, x: Float32Array, timestep: int
) -> Float32Array:
    with counted(model.profile, "drop-in"):
        return model(x, timestep, conditioning)


class _Ticker:
    """Count steps over all batches, for the progress bar, and pass them on."""

    def __init__(self, progress: Steps | None, callback: StepCallback | None, total: int) -> None:
        self._progress, self._callback = progress, callback
        self._done, self._total = 0, total

    def __call__(self, step: int, timestep: int, latents: Float32Array) -> None:
        self._done += 1
        if self._callback is not None:
            self._callback(step, timestep, latents)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _default_batch(model: EngineModel, num_images: int) -> int:
    return model.fixed_batch or min(num_images, _DEFAULT_BATCH)


def _check_counts(num_images: int, batch_size: int | None) -> None:
    for option, value in (("--num-images", num_images), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            remedy = f"Give {option} 4, for example"
            raise UsageError(option, got=str(value), expected="at least 1", remedy=remedy)
