"""Load the real diffusers pipeline around a denoising network."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from accuquant.errors import CalibrationError, SourceError, UsageError
from accuquant.networks.device import CPU
from accuquant.networks.stored_weights import compute_in_float32, is_offloaded, offload
from accuquant.pipelines.diffusers_internals import check_version
from accuquant.pipelines.families import family_of, takes_images
from accuquant.pipelines.fuse_lora import fuse_into_text_encoders
from accuquant.pipelines.half_storage import half_type_of_part
from accuquant.pipelines.image_adapters import image_encoder_parts, let_rows_differ
from accuquant.pipelines.loading import Loading, variant_of
from accuquant.pipelines.look_alikes import check_part
from accuquant.pipelines.model_index import check_classes, read_index
from accuquant.pipelines.quiet import quiet_libraries
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task


def open_pipeline(
    source: Source, task: Task, device: torch.device = CPU, *, given: Mapping[str, Any] | None = None
) -> Any:
    """Load the real pipeline around the network of `source`, as the class that the task asks for.

    `given` are parts that are there already, by the pipeline's names: nothing is read for them. A
    text-to-image pipeline that is given images becomes the image-to-image pipeline of the same components,
    and the inpainting one where it is given masks. The LoRAs of `source` are fused into the text encoders.
    All parts go to `device`; weights of text encoders stay where they are if those of the network do.
    """
    check_version()
    cls = _class_of(source.pipeline_class)
    index = read_index(source.folder)
    check_classes(source.folder, index)
    _check_transformers(source, index)
    parts: dict[str, Any] = {**source.parts, "scheduler": source.scheduler}
    parts |= _left_out(source, index) | dict(given or {})
    parts |= image_encoder_parts(source.folder, index, source.loading.ip_adapters, parts)
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    parts |= {k: v for k, v in unchecked.items() if k in inspect.signature(cls.__init__).parameters}
    _check_parts(source, {part: entry for part, entry in index.items() if part not in parts})
    halves = _half_types(source, {part: entry for part, entry in index.items() if part not in (given or {})})
    try:
        with quiet_libraries(), warnings.catch_warnings():
            # diffusers 0.42 wants `dtype`, which earlier releases do not know
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
            types = {"default": torch.float32, **halves}
            pipe = cls.from_pretrained(
                source.folder,
                local_files_only=True,
                torch_dtype=types,
                variant=source.loading.variant,
                **parts,
            )
    except Exception as fault:  # diffusers and transformers raise many unrelated kinds
        raise SourceError(
            f"pipeline '{source.name}'",
            got=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}",
            expected=f"a {source.pipeline_class} that diffusers can load",
            remedy="Copy or download the pipeline again, or upgrade diffusers and transformers",
        ) from fault
    fuse_into_text_encoders(pipe, source.network, source.component, source.pipeline_class, source.loras)
    for part in halves:
        compute_in_float32(getattr(pipe, part))
    if any(map(is_offloaded, source.network.modules())):
        for part in filter(lambda name: name.startswith("text_encoder"), _of_transformers(index)):
            if getattr(pipe, part) is not None:
                offload(getattr(pipe, part))
    pipe.set_progress_bar_config(disable=True)
    changed = _for_task(pipe, task)
    changed.set_progress_bar_config(disable=True)
    let_rows_differ(changed)
    return changed.to(device)


def _class_of(name: str) -> Any:
    """Return the class of a pipeline of diffusers. Raises CalibrationError for any other name."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):
        return cls
    raise CalibrationError(
        f"pipeline {name}",
        got="a class that the installed diffusers does not have",
        expected="a pipeline of diffusers: the Python code of a folder is never run",
        remedy="Upgrade diffusers, or save the pipeline as one of its classes",
    )


def _left_out(source: Source, index: dict[str, Any]) -> dict[str, None]:
    """Return None for the parts that are left out here, or were when the pipeline was saved.

    diffusers asks for both in so many words. Raises UsageError for a part that the pipeline needs.
    """
    optional = family_of(source.pipeline_class).optional
    needed = [part for part in source.loading.without if part not in optional]
    if needed:
        raise UsageError(
            f"--without {needed[0]}",
            got=f"a part that {source.pipeline_class} needs",
            expected=" or ".join(optional) or f"none: {source.pipeline_class} works without no part",
            remedy="Leave --without out",
        )
    saved_without = [part for part in optional if (index.get(part) or [None])[0] is None]
    return Loading(without=(*source.loading.without, *saved_without)).nothing_for_left_out()


def _check_parts(source: Source, parts: dict[str, Any]) -> None:
    """Raise SourceError for a part whose folder is not there, or holds no weights that can be loaded."""
    for part, entry in parts.items():
        if part.startswith("_") or not isinstance(entry, list) or not isinstance(entry[0], str):
            continue
        if (source.folder / part).is_dir():
            check_part(source.folder / part)
            variant_of(source.folder / part, source.loading)
            continue
        optional = family_of(source.pipeline_class).optional
        encoder = part.replace("tokenizer", "text_encoder")
        raise SourceError(
            f"pipeline '{source.name}'",
            got=f"no folder {part}, which model_index.json lists",
            expected="every part that it lists",
            remedy=f"Give --without {encoder} to leave it out"
            if encoder in optional
            else "The pipeline is incomplete: copy or download it again",
        )


def _half_types(source: Source, index: dict[str, Any]) -> dict[str, torch.dtype]:
    """Return the type of each text encoder whose files are in half precision."""
    encoders = [part for part in _of_transformers(index) if part.startswith("text_encoder")]
    types = {}
    for part in encoders:
        if part in source.loading.without:
            continue
        types[part] = half_type_of_part(
            source.folder / part, variant_of(source.folder / part, source.loading)
        )
    return {part: half for part, half in types.items() if half is not None}


def _of_transformers(index: dict[str, Any]) -> list[str]:
    return [part for part, entry in index.items() if isinstance(entry, list) and entry[0] == "transformers"]


def _for_task(pipe: Any, task: Task) -> Any:
    import diffusers

    if not task.images or takes_images(pipe):
        return pipe
    auto = diffusers.AutoPipelineForInpainting if task.masks else diffusers.AutoPipelineForImage2Image
    try:
        changed = auto.from_pipe(pipe)
    except ValueError as fault:
        raise CalibrationError(
            f"pipeline {type(pipe).__name__}",
            got="--images",
            expected="a pipeline that takes images, or whose components make one that does",
            remedy="Leave --images out",
        ) from fault
    return changed


def _check_transformers(source: Source, index: dict[str, Any]) -> None:
    needed = _of_transformers(index)
    if needed and importlib.util.find_spec("transformers") is None:
        raise SourceError(
            f"pipeline '{source.name}'",
            got=f"no package transformers, which {', '.join(needed)} need",
            expected="an environment that can encode prompts",
            remedy="pip install 'accuquant[text]'",
        )
