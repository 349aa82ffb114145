"""Sample with a real diffusers pipeline whose denoising network is an exported engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant._util.progress import Steps
from accuquant.denoising.process import seeded_generators
from accuquant.manifest import RECIPE_NAME
from accuquant.pipelines.families import call_arguments, no_step_left, refusals_of
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
    num_images: int = 4,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Steps | None = None,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """Sample `num_images` images of an exported folder -> float32 [N, H, W, C] in [0, 1].

    `pipeline` is where text encoders and decoder come from: the pipeline that was exported, unless it has
    moved; `loras` likewise, which only change text encoders here. What `task` leaves open is as it was
    calibrated. Image k takes prompt k and seed + k. `options` go to the engine. Raises SourceError where the
    pipeline or a LoRA is not found, UsageError for a task that does not fit it.
    """
    root = Path(folder)
    network = EngineUNet.from_pretrained(root, engine, **options)
    manifest = network.engine_model.manifest
    calibration = Recipe.load(root / RECIPE_NAME).calibration
    whole = task.with_defaults(calibration.get("task", {}))
    name = pipeline or manifest.source
    source = Source(
        name=name,
        folder=folder_of_pipeline(name),
        pipeline_class=manifest.pipeline_class,
        component=manifest.component,
        network=network,
        scheduler=load_component(root, "scheduler"),
        signature=manifest.signature,
        loras=loras_of_recipe(calibration, loras),
    )
    pipe = open_pipeline(source, whole)
    size = min(batch_size or _DEFAULT_BATCH, num_images)
    count = manifest.num_inference_steps if steps is None else steps
    watch = _Ticker(pipe, progress, -(-num_images // size))
    batches = []
    for first in range(0, num_images, size):
        members = range(first, min(first + size, num_images))
        arguments = call_arguments(pipe, whole, members, count) | {"output_type": "np"}
        generators = seeded_generators([seed + k for k in members])
        with watch, refusals_of(pipe):
            batches.append(np.asarray(pipe(**arguments, generator=generators).images, np.float32))
        if not watch.done:
            raise no_step_left(pipe)
    return np.concatenate(batches)


class _Ticker:
    """Counts the scheduler's steps of every batch for the progress bar."""

    def __init__(self, pipe: Any, progress: Steps | None, batches: int) -> None:
        self._scheduler, self._progress, self._batches = pipe.scheduler, progress, batches
        self.done = 0

    def __enter__(self) -> None:
        step = self._scheduler.step

        def ticking(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.done += 1
            if self._progress is not None:
                self._progress(self.done, len(self._scheduler.timesteps) * self._batches)
            return result

        ticking.__wrapped__ = step  # type: ignore[attr-defined]  # pipelines read the signature
        vars(self._scheduler)["step"] = ticking

    def __exit__(self, *fault: object) -> None:
        del vars(self._scheduler)["step"]
