"""Load a diffusers pipeline, from a folder or the Hub, as the parts that AccuQuant works on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accuquant.errors import SourceError
from accuquant.networks.network import signature_of
from accuquant.networks.signature import Signature
from accuquant.pipelines.fuse_lora import fuse_into_network
from accuquant.pipelines.lora import Lora

#: Pipeline attributes that hold the denoising network.
COMPONENTS = ("unet", "transformer")


@dataclass(frozen=True)
class Source:
    """A trained pipeline: its denoising network (float32, eval), its scheduler, where it lies.

    `loras` are fused into the network, and into the text encoders when they are loaded.
    """

    name: str
    folder: Path
    pipeline_class: str
    component: str
    network: nn.Module
    scheduler: Any
    signature: Signature
    loras: tuple[Lora, ...] = ()


def load_source(source: str | Path, loras: Sequence[Lora] = ()) -> Source:
    """Load the network and the scheduler of a diffusers pipeline, and fuse `loras` into the network.

    `source` is a folder with a model_index.json, or a Hub id. Raises SourceError where it is missing,
    corrupt or not supported, and for a LoRA that does not fit it.
    """
    folder = folder_of_pipeline(str(source))
    index = _read_index(folder)
    component = next((name for name in COMPONENTS if index.get(name)), None)
    if component is None:
        raise SourceError(
            f"pipeline '{source}'",
            got=f"the components {', '.join(k for k in index if not k.startswith('_'))}",
            expected=f"a denoising network named {' or '.join(COMPONENTS)}",
            remedy="Use a diffusion pipeline",
        )
    pipeline_class = str(index.get("_class_name", "DiffusionPipeline"))
    network = _load_part(folder, index, component).eval().requires_grad_(False)
    fuse_into_network(network, component, pipeline_class, loras)
    return Source(
        name=str(source),
        folder=folder,
        pipeline_class=pipeline_class,
        component=component,
        network=network,
        scheduler=_as_the_pipeline_has_it(pipeline_class, _load_part(folder, index, "scheduler")),
        signature=signature_of(network),
        loras=tuple(loras),
    )


def _as_the_pipeline_has_it(pipeline_class: str, scheduler: Any) -> Any:
    """Return the scheduler that the pipeline samples with: DDIMPipeline makes DDIM of whatever was saved."""
    from diffusers import DDIMScheduler

    if pipeline_class != "DDIMPipeline" or type(scheduler) is DDIMScheduler:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config)  # type: ignore[no-untyped-call]


def load_component(folder: Path, part: str) -> Any:
    """Load one component of the pipeline in `folder`, such as its "vae". Raises SourceError."""
    component = _load_part(folder, _read_index(folder), part)
    return component.eval().requires_grad_(False) if isinstance(component, nn.Module) else component


def folder_of_pipeline(source: str) -> Path:
    """Return the folder of a pipeline, downloading it where `source` is a Hub id. Raises SourceError."""
    path = Path(source)
    if path.is_dir():
        return path
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local or not source:
        raise SourceError(
            f"pipeline '{source}'",
            got="a file" if path.is_file() else "no such folder",
            expected="a folder with a model_index.json, or a Hub id such as google/ddpm-cifar10-32",
            remedy="Check the path",
        )
    return _download(source)


def _download(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(hub_id))
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise SourceError(
            f"pipeline '{hub_id}'",
            got=f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}",
            expected="a folder that exists, or a Hub id that can be downloaded",
            remedy="Check the spelling and the network, or pass a local folder",
        ) from fault


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = " (it holds a single network)" if (folder / "config.json").is_file() else ""
        raise SourceError(
            f"pipeline '{folder}'",
            got=f"no model_index.json{hint}",
            expected="a folder that DiffusionPipeline.save_pretrained wrote",
            remedy="Point at the pipeline's folder, not at one of its parts",
        ) from None
    except (OSError, ValueError) as fault:
        raise _corrupt(path, fault) from fault
    if not isinstance(index, dict):
        raise _corrupt(path, ValueError("not a JSON object"))
    return index


def _load_part(folder: Path, index: dict[str, Any], part: str) -> Any:
    import diffusers

    entry = index.get(part)
    class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    cls = getattr(diffusers, str(class_name), None)
    if not isinstance(cls, type):
        raise SourceError(
            f"pipeline '{folder}'",
            got=f"{part}: {entry!r}",
            expected="a class of the installed diffusers library",
            remedy="Save the pipeline with diffusers, or upgrade diffusers",
        )
    arguments: dict[str, Any] = {"subfolder": part, "local_files_only": True}
    missing: list[str] = []
    try:
        if not issubclass(cls, nn.Module):
            return cls.from_pretrained(folder, **arguments)  # type: ignore[attr-defined]
        loaded, info = cls.from_pretrained(  # type: ignore[attr-defined]
            folder, torch_dtype=torch.float32, output_loading_info=True, **arguments
        )
        missing = info["missing_keys"]
    except Exception as fault:  # diffusers and safetensors raise many unrelated kinds on damage
        raise _corrupt(folder / part, fault) from fault
    if missing:  # diffusers would go on with random values
        raise _corrupt(folder / part, ValueError(f"no weights for {', '.join(sorted(missing)[:3])}"))
    return loaded


def _corrupt(path: Path, fault: Exception) -> SourceError:
    reason = str(fault).strip().splitlines()
    return SourceError(
        f"'{path}'",
        got=f"{type(fault).__name__}: {reason[0] if reason else ''}",
        expected="the files that diffusers' save_pretrained writes",
        remedy="The files are damaged or incomplete: copy or download the pipeline again",
    )
