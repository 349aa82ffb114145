"""Load the real diffusers pipeline around a denoising network."""

from __future__ import annotations

import importlib.util
import inspect
import json
import warnings
from typing import Any

import torch

from accuquant.errors import CalibrationError, SourceError
from accuquant.networks.device import CPU
from accuquant.pipelines.families import SEEDED, family_of
from accuquant.pipelines.fuse_lora import fuse_into_text_encoders
from accuquant.pipelines.half_storage import compute_in_float32, half_type_of
from accuquant.pipelines.quiet import quiet_libraries
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task


def open_pipeline(source: Source, task: Task, device: torch.device = CPU) -> Any:
    """Load the real pipeline around the network of `source`, as the class that the task asks for.

    A text-to-image pipeline that is given images becomes the image-to-image pipeline of the same components,
    and the inpainting one where it is given masks. The LoRAs of `source` are fused into the text encoders.
    All parts go to `device`.
    """
    import diffusers

    if source.pipeline_class not in SEEDED:
        family_of(source.pipeline_class)
    index = json.loads((source.folder / "model_index.json").read_text(encoding="utf-8"))
    _check_transformers(source, index)
    parts: dict[str, Any] = {source.component: source.network, "scheduler": source.scheduler}
    cls = getattr(diffusers, source.pipeline_class)
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    parts |= {k: v for k, v in unchecked.items() if k in inspect.signature(cls.__init__).parameters}
    try:
        with quiet_libraries(), warnings.catch_warnings():
            # diffusers 0.42 wants `dtype`, which earlier releases do not know
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
            types = {"default": torch.float32, **_half_types(source, index)}
            pipe = cls.from_pretrained(source.folder, local_files_only=True, torch_dtype=types, **parts)
    except Exception as fault:  # diffusers and transformers raise many unrelated kinds
        raise SourceError(
            f"pipeline '{source.name}'",
            got=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}",
            expected=f"a {source.pipeline_class} that diffusers can load",
            remedy="Copy or download the pipeline again, or upgrade diffusers and transformers",
        ) from fault
    fuse_into_text_encoders(pipe, source.network, source.component, source.pipeline_class, source.loras)
    for part in _half_types(source, index):
        compute_in_float32(getattr(pipe, part))
    pipe.set_progress_bar_config(disable=True)
    changed = _for_task(pipe, task)
    changed.set_progress_bar_config(disable=True)
    return changed.to(device)


def _half_types(source: Source, index: dict[str, Any]) -> dict[str, torch.dtype]:
    """Return the type of each text encoder whose files are in half precision."""
    encoders = [part for part in _of_transformers(index) if part.startswith("text_encoder")]
    types = {part: half_type_of(source.folder / part) for part in encoders}
    return {part: half for part, half in types.items() if half is not None}


def _of_transformers(index: dict[str, Any]) -> list[str]:
    return [part for part, entry in index.items() if isinstance(entry, list) and entry[0] == "transformers"]


def _for_task(pipe: Any, task: Task) -> Any:
    import diffusers

    if not task.images or "image" in inspect.signature(pipe.__call__).parameters:
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
    family_of(type(changed).__name__)
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
