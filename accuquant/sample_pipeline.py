"""Sample with a real diffusers pipeline whose denoising network is an exported engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from accuquant._util.progress import Steps
from accuquant.denoising.process import seeded_generators
from accuquant.denoising.schedulers import check_prediction
from accuquant.errors import SourceError, UsageError
from accuquant.manifest import RECIPE_NAME
from accuquant.networks.device import CPU
from accuquant.pipelines.diffusers_internals import replaced
from accuquant.pipelines.families import call_arguments, no_step_left, refusals_of
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.lora import Lora, loras_of_recipe
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, folder_of_pipeline, load_component
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet

_DEFAULT_BATCH = 4


def sample_pipeline(
    folder: str | os.PathLike[str],
    task: Task,
    *,
    engine: str = "openvino",
    pipeline: str | None = None,
    loras: Sequence[Lora] = (),
    loading: Loading = Loading(),  # noqa: B008, it is frozen
    num_images: int = 4,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device = CPU,
    progress: Steps | None = None,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """Sample `num_images` images of an exported folder -> float32 [N, H, W, C] in [0, 1].

    `pipeline` is where text encoders and decoder come from: the pipeline that was exported, unless it has
    moved; `loras` likewise, which only change text encoders here; `loading` says how it is read. They run on
    `device`. What `task` leaves open is as it was calibrated. Image k takes prompt k and seed + k. `options`
    go to the engine. Raises SourceError where the pipeline or a LoRA is not found, UsageError for a task that
    does not fit it.
    """
    root = Path(folder)
    network = EngineUNet.from_pretrained(root, engine, **options)
    manifest = network.engine_model.manifest
    count = manifest.steps(steps)
    calibrated = Recipe.load(root / RECIPE_NAME).facts
    whole = task.with_defaults(calibrated.task)
    name = pipeline or manifest.source
    if not name:
        raise UsageError(
            "--pipeline",
            got="none, and the exported folder does not say where it was exported from",
            expected="the pipeline whose text encoders and decoder are used",
            remedy="Give --pipeline, a folder or a Hub id",
        )
    scheduler = load_component(root, "scheduler")
    check_prediction(scheduler)
    read_as = loading.or_recorded(calibrated.loading)
    source = Source(
        name=name,
        folder=_folder(name, pipeline, read_as),
        pipeline_class=manifest.pipeline_class,
        component=manifest.component,
        network=network,
        scheduler=scheduler,
        signature=manifest.signature,
        loras=loras_of_recipe(calibrated.loras, loras),
        loading=read_as,
    )
    pipe = open_pipeline(source, whole, device)
    size = min(batch_size or _DEFAULT_BATCH, num_images)
    watch = _Ticker(pipe, progress, -(-num_images // size))
    batches = []
    for first in range(0, num_images, size):
        members = range(first, min(first + size, num_images))
        arguments = call_arguments(pipe, whole, members, count) | {"output_type": "np"}
        generators = seeded_generators([seed + k for k in members])
        with replaced(pipe.scheduler, "step", watch), refusals_of(pipe):
            batches.append(np.asarray(pipe(**arguments, generator=generators).images, np.float32))
        if not watch.done:
            raise no_step_left(pipe)
    return np.concatenate(batches)


def _folder(name: str, named: str | None, loading: Loading) -> Path:
    """Return the folder of the pipeline; where it is not where it was exported from, say how to name it."""
    try:
        return folder_of_pipeline(name, loading)
    except SourceError as fault:
        if named is not None:
            raise
        raise SourceError(
            f"pipeline '{name}', which this was exported from",
            got=fault.got,
            expected="the pipeline whose text encoders and decoder are used",
            remedy="Say where it is now: --pipeline SOURCE",
        ) from fault


class _Ticker:
    """Counts the scheduler's steps of every batch for the progress bar."""

    def __init__(self, pipe: Any, progress: Steps | None, batches: int) -> None:
        self._scheduler, self._progress, self._batches = pipe.scheduler, progress, batches
        self.done = 0

    def __call__(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `step`."""
        result = step(*args, **kwargs)
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, len(self._scheduler.timesteps) * self._batches)
        return result
