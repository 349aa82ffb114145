"""The diffusers pipelines whose denoising step AccuQuant simulates, and how each of them is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accuquant.errors import CalibrationError, UsageError
from accuquant.pipelines.control_images import control_argument, control_images, control_scales
from accuquant.pipelines.image_adapters import image_adapters, image_embeds
from accuquant.pipelines.picture import open_picture
from accuquant.pipelines.task import Task, option


@dataclass(frozen=True)
class Family:
    """What pipelines have in common.

    `guidance`: the kind that they use where they make several predictions, and `scale`: the argument that
    holds its scale. `low_resolution`: the images that
    they take have the size of their latents; `stacked_images`: as one tensor in [-1, 1].
    `unscaled_latents`: they decode latents as they are, without the autoencoder's scaling factor.
    `optional`: the parts that they work without. `known`: their guidance is written down here; of others it
    is found by trying which one makes the scheduler's input of the network's output.
    """

    guidance: str = "classifier-free"
    scale: str = "guidance_scale"
    low_resolution: bool = False
    stacked_images: bool = False
    unscaled_latents: bool = False
    optional: tuple[str, ...] = ()
    known: bool = True


_UNKNOWN = Family(known=False)
#: The negative prompt comes second, in a network call of its own, beside an embedded guidance scale.
_FLUX = Family("conditional-first", scale="true_cfg_scale")
#: Without its T5, which has most of the weights, SD 3 takes zeros in its place.
_SD3 = Family(optional=("text_encoder_3",))

#: Pipelines that a simulated step is written down for; of another class every step is checked, not two.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(),
    "StableDiffusionImg2ImgPipeline": Family(),
    "StableDiffusionInpaintPipeline": Family(),
    "StableDiffusionInstructPix2PixPipeline": Family("image-and-text"),
    "StableDiffusionImageVariationPipeline": Family(),
    "StableDiffusionUpscalePipeline": Family(low_resolution=True),
    "StableDiffusionXLPipeline": Family(),
    "StableDiffusionXLImg2ImgPipeline": Family(),
    "StableDiffusionXLInpaintPipeline": Family(),
    "StableDiffusionXLInstructPix2PixPipeline": Family("image-and-text"),
    "LatentConsistencyModelPipeline": Family(),
    "LatentConsistencyModelImg2ImgPipeline": Family(),
    "LDMTextToImagePipeline": Family(),
    "LDMSuperResolutionPipeline": Family(low_resolution=True, stacked_images=True, unscaled_latents=True),
    "DiTPipeline": Family("conditional-first"),
    "PixArtAlphaPipeline": Family(),
    "PixArtSigmaPipeline": Family(),
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "StableDiffusionAdapterPipeline": Family(),
    "StableDiffusionXLAdapterPipeline": Family(),
    "StableDiffusionControlNetPipeline": Family(),
    "StableDiffusionControlNetImg2ImgPipeline": Family(),
    "StableDiffusionControlNetInpaintPipeline": Family(),
    "StableDiffusionXLControlNetPipeline": Family(),
    "StableDiffusionXLControlNetImg2ImgPipeline": Family(),
    "StableDiffusionXLControlNetInpaintPipeline": Family(),
}
#: Pipelines that start from noise alone, or from noise and a class label.
SEEDED = ("DDIMPipeline", "DDPMPipeline", "LDMPipeline")
#: Pipelines whose prompts may refer to images, all of them in every call, and those that need none.
_REFERENCES = ("Flux2Pipeline", "Flux2KleinPipeline")
_WITH_OR_WITHOUT_IMAGES = (*_REFERENCES, "FluxKontextPipeline")
#: Choice of a Task -> argument of a pipeline's __call__, where the names differ.
_ARGUMENTS = {
    "prompts": "prompt",
    "images": "image",
    "masks": "mask_image",
    "image_size": "height",
}


def family_of(pipeline_class: str) -> Family:
    """Return the family of a pipeline; that of a class without an entry is found out in its first steps."""
    return FAMILIES.get(pipeline_class, _UNKNOWN)


def call_arguments(pipe: Any, task: Task, indices: Sequence[int], num_steps: int) -> dict[str, Any]:
    """Return the arguments of `pipe.__call__` for the images `indices` of a task.

    Raises UsageError for a choice that the pipeline does not take, and for prompts or images that it needs.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    name = type(pipe).__name__
    _check_made_of(name, accepted)
    _check_choices(pipe, task, accepted)
    arguments: dict[str, Any] = {"num_inference_steps": num_steps}
    for choice in (
        "guidance_scale", "true_cfg_scale", "image_guidance_scale", "guidance_rescale", "strength",
        "num_frames",
    ):  # fmt: skip
        if getattr(task, choice) is not None:
            arguments[choice] = getattr(task, choice)
    if task.size is not None and "height" in accepted:
        arguments["width"], arguments["height"] = task.size
        # Flux Kontext makes every image one of a million pixels, of what is given and of what comes out
        sized = {"max_area": task.size[0] * task.size[1], "_auto_resize": False}
        arguments |= {name: value for name, value in sized.items() if name in accepted}
    if "batch_size" in accepted:  # pipelines that start from noise alone
        arguments["batch_size"] = len(indices)
    if "prompt" in accepted:
        arguments["prompt"] = [_nth(name, "prompts", task.prompts, k) for k in indices]
    if task.negative_prompt is not None:
        arguments["negative_prompt"] = [task.negative_prompt] * len(indices)
    if (control := control_argument(pipe)) is not None:
        arguments[control] = control_images(pipe, task, indices, _image_size(pipe, task))
        arguments |= control_scales(pipe, task)
    if image_adapters(pipe):
        scale = task.guidance_scale
        guided = default_of(pipe, "guidance_scale", 1.0) if scale is None else scale
        arguments["ip_adapter_image_embeds"] = image_embeds(pipe, task, indices, guided=guided > 1)
    if takes_images(pipe) and (task.images or name not in _WITH_OR_WITHOUT_IMAGES):
        # a list of images is FLUX.2's way to say that each of them is for every prompt
        arguments["image"] = _images(pipe, task, range(len(task.images)) if name in _REFERENCES else indices)
    if "mask_image" in accepted:
        size = _image_size(pipe, task)
        masks = [_nth(name, "masks", task.masks, k) for k in indices]
        arguments["mask_image"] = [open_picture(mask, "L", size) for mask in masks]
    if "class_labels" in accepted:
        classes = int(pipe.transformer.config.num_embeds_ada_norm)
        arguments["class_labels"] = [k % classes for k in indices]
    if "use_resolution_binning" in accepted and pipe.transformer.config.sample_size not in (32, 64, 128):
        arguments["use_resolution_binning"] = False  # the pipeline knows no bins for this size
    if "output_type" in accepted:
        arguments["output_type"] = "latent"
    return arguments


@contextmanager
def refusals_of(pipe: Any) -> Iterator[None]:
    """Turn the ValueError of a pipeline that does not take its arguments into a UsageError."""
    try:
        yield
    except ValueError as fault:
        raise UsageError(
            f"pipeline {type(pipe).__name__}",
            got=f"{(str(fault).splitlines() or ['a ValueError'])[0].rstrip('. ')}",
            expected="a choice of size, strength, steps and guidance that it takes",
            remedy="Change the choice that it names",
        ) from fault


def no_step_left(pipe: Any) -> UsageError:
    """Return the error for a strength so low that no denoising step is left."""
    return UsageError(
        f"pipeline {type(pipe).__name__}",
        got="a strength at which no step is left",
        expected="at least one denoising step",
        remedy="Raise --strength or --steps",
    )


def default_of(pipe: Any, name: str, otherwise: float) -> float:
    """Return the default of an argument of `pipe.__call__`."""
    parameter = inspect.signature(pipe.__call__).parameters.get(name)
    missing = parameter is None or parameter.default in (None, inspect.Parameter.empty)
    return otherwise if missing or parameter is None else float(parameter.default)


def takes_images(pipe: Any) -> bool:
    """Say whether a pipeline starts from images, or edits some."""
    return "image" in inspect.signature(pipe.__call__).parameters and control_argument(pipe) != "image"


def _check_made_of(name: str, accepted: Any) -> None:
    """Raise CalibrationError for a pipeline that makes videos of images or of videos.

    The pipelines of diffusers for it take one image a call (Wan repeats its embedding for each row of a
    batch), or keep given frames out of the scheduler's step (LTX).
    """
    given = [argument for argument in ("image", "video") if argument in accepted]
    if "num_frames" in accepted and given:
        raise CalibrationError(
            f"pipeline {name}",
            got=f"videos that are made of its {given[0]}",
            expected="videos that are made of prompts alone",
            remedy="Use the text-to-video pipeline of the same family, such as WanPipeline or LTXPipeline",
        )


def _check_choices(pipe: Any, task: Task, accepted: Any) -> None:
    name = type(pipe).__name__
    takes = set(accepted) | ({"height"} if "image" in accepted else set())
    if control_argument(pipe) is not None:
        takes |= {"control_images", "control_scale"}
    if image_adapters(pipe):
        takes |= {"ip_adapter_images"}
    takes -= set() if takes_images(pipe) else {"image"}
    refused = [choice for choice in task.given() if _ARGUMENTS.get(choice, choice) not in takes]
    if refused:
        raise UsageError(
            ", ".join(map(option, refused)),
            got="a choice",
            expected=f"none: {name} does not take it",
            remedy="Leave it out, or use another pipeline class",
        )
    if task.guidance_rescale and FAMILIES.get(name, Family()).guidance == "image-and-text":
        raise UsageError(
            "--guidance-rescale",
            got=f"{task.guidance_rescale:g}",
            expected=f"none: the guidance of {name}, by image and text, is simulated without it",
            remedy="Leave it out",
        )
    if (task.true_cfg_scale or 0) > 1 and task.negative_prompt is None:
        raise UsageError(
            "--true-cfg-scale",
            got=f"{task.true_cfg_scale:g} without a negative prompt",
            expected="a negative prompt too: without one, the pipeline ignores the scale",
            remedy="Give --negative-prompt, '' for an empty one",
        )


def _nth(pipeline: str, choice: str, values: Sequence[str], index: int) -> str:
    if not values:
        raise UsageError(
            f"pipeline {pipeline}",
            got=f"no {choice}",
            expected=f"some of the {choice} that you sample with",
            remedy=f"Give {option(choice)}",
        )
    return values[index % len(values)]


def sides_can_be_chosen(pipe: Any) -> bool:
    """Say whether a pipeline takes an image's sides, or an image that has some."""
    return bool({"height", "image"} & set(inspect.signature(pipe.__call__).parameters))


def frames_of(pipe: Any, task: Task) -> int | None:
    """Return the number of frames of the videos that a pipeline makes, None where it makes images."""
    parameter = inspect.signature(pipe.__call__).parameters.get("num_frames")
    if parameter is None or (task.num_frames is None and not isinstance(parameter.default, int)):
        return None
    return int(task.num_frames or parameter.default)


def pixels(pipe: Any, task: Task) -> tuple[int, int] | None:
    """Return width and height of the images that a pipeline makes, None where nothing tells them."""
    try:
        return task.size or _image_size(pipe, task)
    except (AttributeError, TypeError):
        return None


def _images(pipe: Any, task: Task, indices: Sequence[int]) -> Any:
    name, size = type(pipe).__name__, _image_size(pipe, task)
    images = [open_picture(_nth(name, "images", task.images, k), "RGB", size) for k in indices]
    if not family_of(name).stacked_images:
        return images
    import numpy as np
    import torch

    pixels = np.stack([np.asarray(image, np.float32) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels / 127.5 - 1)


def _image_size(pipe: Any, task: Task) -> tuple[int, int]:
    """Return width and height in pixels: what was chosen, or what the network was made for."""
    if task.size is not None:
        return task.size
    network = getattr(pipe, "unet", None) or pipe.transformer
    size = getattr(network.config, "sample_size", None) or pipe.default_sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = 1 if family_of(type(pipe).__name__).low_resolution else int(pipe.vae_scale_factor)
    return width * factor, height * factor
