"""A feed-forward generator as a SOURCE: checked, written into a folder that holds no code, and read again."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accuquant._util.exchange import replace_folder
from accuquant._util.facts import FactsError, read_facts
from accuquant._util.files import write_text
from accuquant._util.scratch import scratch_beside
from accuquant.denoising.one_step import OneStepScheduler
from accuquant.errors import SourceError
from accuquant.manifest import FEED_FORWARD
from accuquant.networks.aten_program import Program
from accuquant.networks.feed_forward import FeedForwardNetwork
from accuquant.networks.read_program import read_program
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.model_index import corrupt

#: The part of the folder that is the generator.
COMPONENT = "generator"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_CONFIG = "config.json"
#: Outputs are images in [-1, 1]; what overshoots a little is clipped.
_MOST = 2.0
_CHANNELS = (1, 3)
_Extent = Annotated[int, Meta(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class _Config:
    """generator/config.json."""

    latent_shape: tuple[_Extent, ...]
    image_shape: Annotated[tuple[_Extent, ...], Meta(min_length=3, max_length=3)]
    program: Any


@dataclass(frozen=True)
class FeedForward:
    """The parts of a generator that was read from its folder."""

    network: FeedForwardNetwork
    scheduler: OneStepScheduler


def write_feed_forward(module: nn.Module, latent_shape: Sequence[int], folder: Path) -> None:
    """Write `module`, which makes images [B, C, H, W] in [-1, 1] of latents [B, *latent_shape], to `folder`.

    The module itself is not changed. Layers keep their names; weights are in float32; no class and no code is
    written. Raises SourceError for a module that is no such generator, or that torch.export cannot read.
    """
    _check_place(folder)
    single = copy.deepcopy(module).float().cpu().eval().requires_grad_(False)
    name = type(module).__name__
    latents = torch.randn((3, *latent_shape), generator=torch.Generator().manual_seed(0))
    _check_inputs(module)
    images = _checked_images(name, single, latents)
    try:
        program, tensors = read_program(single, latents[:2])
        network = FeedForwardNetwork({}, Program.from_dict(json.loads(json.dumps(program))), tensors)
    except Exception as fault:  # torch.export raises many unrelated kinds
        raise _refused(
            name,
            got=str(fault) if isinstance(fault, FactsError) else f"{type(fault).__name__}: {_first(fault)}",
            expected="a forward that torch.export can read, of operations that compute tensors from tensors",
            remedy="Take out what depends on values of tensors, or give the part that makes images alone",
        ) from fault
    again = network.eval()(latents)[0]
    if not torch.allclose(again, images, rtol=1e-3, atol=1e-4):
        raise _refused(
            name,
            got=f"other images from its program, by {float((again - images).abs().max()):.2g}",
            expected="a computation that does not depend on what was computed before",
            remedy="Make the module's forward a function of its input alone",
        )
    config = {
        "_class_name": type(network).__name__,
        "latent_shape": list(latent_shape),
        "image_shape": list(images.shape[1:]),
        "program": program,
    }
    _write(Path(folder), config, tensors)


def read_feed_forward(folder: Path, index: dict[str, Any]) -> FeedForward:
    """Read what `write_feed_forward` wrote. Raises SourceError where it is damaged."""
    path = folder / COMPONENT
    try:
        config = read_facts(path / _CONFIG, _Config)
        network = FeedForwardNetwork(
            {"latent_shape": list(config.latent_shape), "image_shape": list(config.image_shape)},
            Program.from_dict(config.program),
            load_file(path / _WEIGHTS),
        )
        network.eval().requires_grad_(False)
        made = network(torch.zeros(1, *config.latent_shape))[0]
        if tuple(made.shape[1:]) != config.image_shape:
            raise FactsError(f"a program that makes {list(made.shape[1:])}, not {list(config.image_shape)}")
    except (FactsError, OSError, SafetensorError, RuntimeError, TypeError, ValueError, IndexError) as fault:
        raise corrupt(path, fault) from fault
    return FeedForward(network, OneStepScheduler())


def is_feed_forward(index: dict[str, Any]) -> bool:
    """Say whether a model_index.json is that of a feed-forward generator."""
    return index.get("_class_name") == FEED_FORWARD


def check_loading(folder: Path, loading: Loading, loras: Sequence[object]) -> None:
    """Raise SourceError for a choice that only pipelines of diffusers have."""
    chosen = {
        "--lora": loras, "--variant": loading.variant, "--without": loading.without,
        "--network": loading.network, "--pipeline-config": loading.pipeline_config,
    }  # fmt: skip
    given = [option for option, value in chosen.items() if value]
    if given:
        raise SourceError(
            f"generator '{folder}'",
            got=", ".join(given),
            expected="none: the folder holds one network, in float32",
            remedy="Leave it out",
        )


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    index = {
        "_class_name": FEED_FORWARD,
        COMPONENT: ["accuquant", config["_class_name"]],
        "scheduler": ["accuquant", OneStepScheduler.__name__],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(folder) as scratch:
        new = scratch / "new"
        (new / COMPONENT).mkdir(parents=True)
        save_file(tensors, new / COMPONENT / _WEIGHTS)
        write_text(new / COMPONENT / _CONFIG, json.dumps(config, indent=1) + "\n")
        OneStepScheduler().save_pretrained(new / "scheduler")
        write_text(new / "model_index.json", json.dumps(index, indent=2) + "\n")
        replace_folder(new, folder, scratch / "old")


def _check_place(folder: Path) -> None:
    """Refuse to write over anything but an earlier generator."""
    path = Path(folder)
    index = path / "model_index.json"
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if index.is_file() and FEED_FORWARD in index.read_text(errors="replace"):
        return
    raise SourceError(
        f"folder '{path}'",
        got="a folder with other files" if path.is_dir() else "a file",
        expected="a new path, an empty folder, or an earlier generator",
        remedy="Choose another path: nothing was overwritten",
    )


def _check_inputs(module: nn.Module) -> None:
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) == 1 and any(p.name == needed[0] and p.kind in plain for p in parameters):
        return
    raise _refused(
        type(module).__name__,
        got=f"a forward that needs {', '.join(needed) or 'nothing'}",
        expected="one input, the latents",
        remedy="Wrap it in a module whose forward(self, latents) gives the others their values",
    )


@torch.no_grad()
def _checked_images(name: str, module: nn.Module, latents: Tensor) -> Tensor:
    """Return the images of three latents; refuse what is no generator of images."""
    try:
        images, again = module(latents), module(latents)
        alone = module(latents[1:2])
    except Exception as fault:  # the user's own code
        raise _refused(
            name,
            got=f"{type(fault).__name__}: {_first(fault)}",
            expected=f"a forward that takes latents {list(latents.shape)}",
            remedy="Give the shape of one latent, without the batch",
        ) from fault
    if not isinstance(images, Tensor):
        raise _refused(
            name,
            got=f"a forward that returns a {type(images).__name__}",
            expected="one tensor of images [B, C, H, W]",
            remedy="Wrap it in a module that returns the images alone",
        )
    if images.ndim != 4 or images.shape[1] not in _CHANNELS or not images.is_floating_point():
        raise _refused(
            name,
            got=f"an output {list(images.shape)} of {str(images.dtype).removeprefix('torch.')}",
            expected="images [B, 1 or 3, H, W] of floating-point numbers",
            remedy="Wrap it in a module that makes images of its output",
        )
    if images.shape[0] != len(latents) or not torch.allclose(images[1:2], alone, rtol=1e-3, atol=1e-4):
        raise _refused(
            name,
            got=f"an output {list(images.shape)} for latents {list(latents.shape)}, "
            "in which an image depends on the others of its batch",
            expected="the batch in the first axis, each image a function of its own latent",
            remedy="Wrap it in a module that moves the batch first and mixes no rows",
        )
    if not torch.equal(images, again):
        raise _refused(
            name,
            got="other images from the same latents when it is called again",
            expected="a function of its input: an engine draws no random numbers",
            remedy="Switch its random layers off, or make their noise a constant",
        )
    if not bool(torch.isfinite(images).all()) or float(images.abs().mean()) > _MOST:
        raise _refused(
            name,
            got=f"values from {float(images.min()):.3g} to {float(images.max()):.3g}",
            expected="images in [-1, 1]",
            remedy="Wrap it in a module that maps its output to [-1, 1]",
        )
    return images


def _first(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def _refused(name: str, *, got: str, expected: str, remedy: str) -> SourceError:
    return SourceError(f"generator {name}", got=got, expected=expected, remedy=remedy)
