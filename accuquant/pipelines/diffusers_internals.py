"""All that AccuQuant knows of diffusers beyond its documented interface, in one place.

diffusers' pipelines have no hook just before their first network call, and its networks none for what a
trace needs. So methods of single objects are replaced for a while, and names are read that no documentation
promises.
`moved` says in sentences which of them the installed diffusers does not have.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

from accuquant.errors import MissingDependencyError

#: The releases that this module is written for, from the first to before the last. Older ones run a Python
#: module that a folder's model_index.json names; newer ones are not known yet. pyproject.toml has this range.
OLDEST, BEFORE = (0, 38), (0, 43)
#: Entries of a configuration that change from file to file and from process to process.
VOLATILE_CONFIG = ("_name_or_path", "_diffusers_version", "_use_default_values")
#: Halvings of an image: no side below 2^30 is a multiple of 2^30.
_NO_SIDE_FITS = 30


class ReliedOn(NamedTuple):
    """A name that is read or replaced: `owner`, as module:path, has it, or its code uses it (`used`)."""

    owner: str
    name: str
    purpose: str
    used: bool = False


_FROM_IMAGES = (
    "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
    "FluxImg2ImgPipeline", "FluxInpaintPipeline", "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline", "StableDiffusionXLControlNetInpaintPipeline",
)  # fmt: skip
_PASTING = tuple(name for name in _FROM_IMAGES if "Inpaint" in name)
_WITH_LORAS = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
RELIED_ON: tuple[ReliedOn, ...] = (
    *(
        ReliedOn(f"diffusers:{cls}.__call__", "_num_timesteps", "tells where an image starts", True)
        for cls in _FROM_IMAGES
    ),
    *(
        ReliedOn(f"diffusers:{cls}.__call__", method, "prepares what inpainting pastes", True)
        for cls in _PASTING
        for method in ("prepare_latents", "prepare_mask_latents")
    ),
    *(
        ReliedOn(f"diffusers:{cls}", "_lora_loadable_modules", "lists the parts that take a LoRA")
        for cls in _WITH_LORAS
    ),
    *(
        ReliedOn("diffusers.utils", name, "fuses a LoRA into a text encoder")
        for name in (
            "convert_state_dict_to_diffusers", "convert_state_dict_to_peft", "get_peft_kwargs",
            "recurse_remove_peft_layers",
        )
    ),
    ReliedOn("diffusers:UNet2DConditionModel.forward", "num_upsamplers", "frees graphs of sizes", True),
    ReliedOn(
        "diffusers:StableDiffusionXLPipeline._get_add_time_ids", "add_embedding",
        "is what the drop-in has for SDXL", True,
    ),
)  # fmt: skip


def installed() -> tuple[int, int]:
    """Return major and minor of the installed diffusers. Raises PackageNotFoundError where there is none."""
    major, minor = version("diffusers").split(".")[:2]
    return int(major), int(minor)


def supported_range() -> str:
    """Return the range of releases as pip spells it."""
    return f">={_dotted(OLDEST)},<{_dotted(BEFORE)}"


def check_version() -> None:
    """Raise MissingDependencyError for a diffusers that is too old to load a folder safely.

    A newer one than is known is let through: what differs there is named where it is met, and
    `accuquant doctor` lists it.
    """
    if installed() < OLDEST:
        raise MissingDependencyError(
            "diffusers",
            got=f"release {version('diffusers')}, which runs Python files that a pipeline's folder names",
            expected=f"a release that does not: {supported_range()}",
            remedy=f"pip install -U 'diffusers{supported_range()}'",
        )


def moved(relied_on: tuple[ReliedOn, ...] = RELIED_ON) -> list[str]:
    """Return a sentence for everything that the installed diffusers does not have where it is looked for."""
    release = version("diffusers")
    return [
        f"diffusers {release}: {item.name} is gone from {item.owner}; it {item.purpose}."
        for item in relied_on
        if not _is_there(item)
    ]


@contextmanager
def replaced(owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let `stand_in(method, *args, **kwargs)` answer for a method of this one object inside the block.

    It keeps the method's signature: pipelines look up what a scheduler's step takes.
    """
    method = getattr(owner, name)

    @functools.wraps(method)
    def answering(*args: Any, **kwargs: Any) -> Any:
        return stand_in(method, *args, **kwargs)

    before = vars(owner).get(name)
    vars(owner)[name] = answering
    try:
        yield
    finally:
        if before is None:
            del vars(owner)[name]
        else:  # one stand-in inside another
            vars(owner)[name] = before


@contextmanager
def remembered(owner: Any, name: str) -> Iterator[list[Any]]:
    """Yield a list that gets the results of a method of `owner`, where it has one of that name."""
    results: list[Any] = []

    def remembering(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        results.append(method(*args, **kwargs))
        return results[-1]

    if not hasattr(owner, name):
        yield results
        return
    with replaced(owner, name, remembering):
        yield results


def copy_without(owner: Any, name: str) -> Any:
    """Return a deep copy of an object whose method `name` is replaced, with its own method."""
    shallow = copy.copy(owner)
    del vars(shallow)[name]
    return copy.deepcopy(shallow)


def first_step(pipe: Any, timesteps: Any) -> int:
    """Return at which of the scheduler's `timesteps` a running pipeline starts: above 0 by a strength."""
    visited = getattr(pipe, "_num_timesteps", None)
    return 0 if visited is None else len(timesteps) - int(visited)


def lora_parts(pipeline_class: str) -> list[str]:
    """Return the parts of a pipeline that diffusers loads a LoRA into."""
    import diffusers

    return list(getattr(getattr(diffusers, pipeline_class), "_lora_loadable_modules", []))


def lora_tools() -> Any:
    """Return the module with the functions that turn a LoRA of diffusers into one of peft."""
    return importlib.import_module("diffusers.utils")


@contextmanager
def every_size(network: Any) -> Iterator[None]:
    """Let a network that can upsample to its skip connections' sizes always do so inside the block.

    UNet2DConditionModel does so for images whose sides its levels do not divide, and doubles them otherwise.
    The two are the same where both work, so a graph of the first takes every size.
    """
    count = getattr(network, "num_upsamplers", 0)
    if count == 0:
        yield
        return
    network.num_upsamplers = _NO_SIDE_FITS
    try:
        yield
    finally:
        network.num_upsamplers = count


def _is_there(item: ReliedOn) -> bool:
    module, _, path = item.owner.partition(":")
    try:
        owner: Any = importlib.import_module(module)
        for name in filter(None, path.split(".")):
            owner = getattr(owner, name)
    except (ImportError, AttributeError, RuntimeError):  # diffusers raises the last for a part of its own
        return False
    if not item.used:
        return hasattr(owner, item.name)
    return item.name in inspect.unwrap(owner).__code__.co_names


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
