"""Sample with a real diffusers pipeline whose denoising network is an exported engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from accuquant._util.progress import Steps
from accuquant.denoising.process import seeded_generators
from accuquant.denoising.schedulers import check_prediction
from accuquant.errors import SourceError, UsageError
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.device import CPU
from accuquant.pipeline_profile import profiled
from accuquant.pipelines.control_networks import CONTROLLED_CLASSES, CONTROLNET, load_controls
from accuquant.pipelines.decoder_source import AUTOENCODERS
from accuquant.pipelines.diffusers_internals import replaced
from accuquant.pipelines.families import call_arguments, no_step_left, refusals_of
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.lora import Lora, check_loras, loras_of_recipe
from accuquant.pipelines.model_index import read_index
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, folder_of_pipeline, load_component
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_control_net import EngineControlNet
from accuquant.runtime.engine_parts import engine_decoder, engine_parts, holds_decoder, holds_parts
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.loop_profile import LoopProfile, counted
from accuquant.runtime.parts_choice import ENGINES, Parts, runs_on_engine

_DEFAULT_BATCH = 4


def sample_pipeline(
    folder: str | os.PathLike[str],
    task: Task,
    *,
    engine: str = "openvino",
    pipeline: str | None = None,
    parts: Parts = "auto",
    loras: Sequence[Lora] = (),
    loading: Loading = Loading(),  # noqa: B008, it is frozen
    num_images: int = 4,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device = CPU,
    progress: Steps | None = None,
    profile: LoopProfile | None = None,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """Sample `num_images` images of an exported folder -> float32 [N, H, W, C] in [0, 1].

    Videos are [N, F, H, W, C].
    `parts` says what runs text encoders and decoder: "engine" takes them from the folder, "torch" from the
    pipeline that was exported, or `pipeline`, on `device`; "auto" takes the engine where the folder holds
    them, no `pipeline` is named and `device` is the CPU. `loras`, which only change text encoders here, and
    `loading` say how the pipeline is read. What `task` leaves open is as it was calibrated. Image k takes
    prompt k and seed + k. `profile` counts where the seconds go. `options` go to the engine. Raises
    SourceError where the pipeline or a LoRA is not found, UsageError for a choice that does not fit.
    """
    root = Path(folder)
    with counted(profile, "loading", then="rest"):
        network = EngineUNet.from_pretrained(root, engine, **options)
        manifest = network.engine_model.manifest
        count = manifest.steps(steps)
        calibrated = Recipe.load(root / RECIPE_NAME).facts
        whole = task.with_defaults(calibrated.task)
        read_as = loading.or_recorded(calibrated.loading)
        given: dict[str, Any] = {}
        if runs_on_engine(
            parts,
            held=holds_parts(manifest),
            engine=engine,
            named=pipeline is not None or loading.variant is not None,
            device=device.type,
        ):
            given = engine_parts(root, engine, check_hashes=False, **_of_parts(options))
            if loras:  # those of the graphs
                check_loras(calibrated.loras, loras)
            found, loras, read_as = (str(root), root), (), replace(read_as, variant=None)
        else:
            found = _named(manifest, pipeline, read_as)
            loras = loras_of_recipe(calibrated.loras, loras)
        whole_export = bool(given)
        given |= _controls(root, manifest, found[1], read_as, engine, options)
        scheduler = load_component(root, "scheduler")
        check_prediction(scheduler)
        source = Source(
            name=found[0],
            folder=found[1],
            pipeline_class=manifest.pipeline_class,
            component=manifest.component,
            network=network,
            scheduler=scheduler,
            signature=manifest.signature,
            loras=tuple(loras),
            loading=read_as,
        )
        pipe = open_pipeline(source, whole, device, given=given)
    size = min(batch_size or _DEFAULT_BATCH, num_images)
    watch = _Ticker(pipe, progress, -(-num_images // size))
    batches = []
    decoder = None if whole_export else _decoder(root, manifest, parts, engine, device, _of_parts(options))
    with nullcontext() if profile is None else profiled(pipe, profile), _decoding_with(pipe, decoder):
        for first in range(0, num_images, size):
            members = range(first, min(first + size, num_images))
            arguments = call_arguments(pipe, whole, members, count) | {"output_type": "np"}
            generators = seeded_generators([seed + k for k in members])
            with replaced(pipe.scheduler, "step", watch), refusals_of(pipe):
                batches.append(pictures_of(pipe(**arguments, generator=generators)))
            if not watch.done:
                raise no_step_left(pipe)
    return np.concatenate(batches)


def _decoder(
    root: Path, manifest: Manifest, parts: Parts, engine: str, device: torch.device, options: dict[str, Any]
) -> Any:
    """Return the export's own decoder where it has one by itself and nothing speaks against the engine."""
    taken = parts == "auto" and device.type == "cpu" and engine in ENGINES
    return engine_decoder(root, engine, **options) if taken and holds_decoder(manifest) else None


@contextmanager
def _decoding_with(pipe: Any, decoder: Any) -> Iterator[None]:
    """Let `decoder` make the images of a pipeline, whose autoencoder still encodes."""
    if decoder is None:
        yield
        return
    found = next(getattr(pipe, name) for name in AUTOENCODERS if getattr(pipe, name, None) is not None)

    def decode(_own: Callable[..., Any], z: Any, *_args: Any, return_dict: bool = True, **_kw: Any) -> Any:
        return decoder.decode(z, return_dict)

    with replaced(found, "decode", decode):
        yield


def _controls(
    root: Path, manifest: Manifest, pipeline: Path, loading: Loading, engine: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the control networks: those of the folder, else in float those that were calibrated with."""
    if manifest.controls:
        return {CONTROLNET: EngineControlNet.from_pretrained(root, engine, **options)}
    if manifest.pipeline_class not in CONTROLLED_CLASSES:
        return {}
    return {CONTROLNET: load_controls(pipeline, read_index(pipeline), loading, as_stored=False)}


def pictures_of(output: Any) -> npt.NDArray[np.float32]:
    """Return what a pipeline has made with output_type="np": images [N, H, W, C], videos [N, F, H, W, C]."""
    return np.asarray(output.frames if hasattr(output, "frames") else output.images, np.float32)


def _of_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the engine's options the float parts take; bfloat16 only where it is asked for."""
    taken = {name: options[name] for name in ("num_threads", "cache_dir") if name in options}
    return taken | ({"precision": "bf16"} if options.get("precision") == "bf16" else {})


def _named(manifest: Manifest, pipeline: str | None, loading: Loading) -> tuple[str, Path]:
    """Return the name and the folder of the pipeline that text encoders and decoder come from."""
    name = pipeline or manifest.source
    if not name:
        raise UsageError(
            "--pipeline",
            got="none, and the exported folder does not say where it was exported from",
            expected="the pipeline whose text encoders and decoder are used",
            remedy="Give --pipeline, a folder or a Hub id",
        )
    return name, _folder(name, pipeline, loading)


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
