"""What a UNet with a control network takes, what the control network gives, and how both are called.

ControlNet (Zhang et al., arXiv 2302.05543, figure 3): a copy of the encoder reads the noisy sample and an
image, and its features are added to the skip connections and the middle of the UNet, in every step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accuquant.networks.architectures import read_signature
from accuquant.networks.call_form import CallForm, Place
from accuquant.networks.signature import Signature, TensorSpec

#: The architecture that the signature of a UNet together with its control networks has.
CONTROLLED = "ControlledNetwork"
CONTROL_NET = "ControlNetModel"
#: Inputs of a UNet, called as diffusers calls them; the first is a list, one tensor for each skip connection.
DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"
#: Outputs of a control network.
DOWN_OUT, MID_OUT = "down_block_res_samples", "mid_block_res_sample"
IMAGE, SCALE = "controlnet_cond", "conditioning_scale"
#: Image sides of a sample's level, and of the control image.
_LEVEL = re.compile(r"(height|width)_(\d+)")
_PIXELS = {"control_height": "height", "control_width": "width"}
#: Where the layers of the two networks stand in a ControlledNetwork.
_PART = re.compile(r"(unet|controlnet(?:\.nets\.\d+)?)\.(.+)")

Config = Mapping[str, Any]


def image_names(count: int) -> tuple[str, ...]:
    """Return what the images of `count` control networks are called."""
    return (IMAGE,) if count == 1 else tuple(f"{IMAGE}_{k}" for k in range(count))


def unet_signature(config: Config) -> Signature:
    """Return the signature of a UNet2DConditionModel that takes a control network's residuals.

    A residual has an input of its own, in the order of the skip connections:
    `down_block_additional_residuals_0` [B, C, H, W] is that of the first, and so on.
    """
    plain = read_signature("UNet2DConditionModel", config)
    residuals = residual_specs(config, DOWN, MID)
    named = {name: Place(_path(name)) for name in (plain.sample.name, "timestep")}
    named |= {spec.name: Place(_path(spec.name)) for spec in (*plain.conditioning, *residuals)}
    return replace(
        plain,
        conditioning=(*plain.conditioning, *residuals),
        sizes=plain.sizes | _level_sizes(plain, config),
        call=CallForm(named, Place((0,)), {("return_dict",): False}, per_row=False),
    )


def control_signature(config: Config, unet: Config) -> Signature:
    """Return the signature of a control network; its graph has an output for each of its residuals.

    `controlnet_cond` [B, C, H, W] is the image in pixels, `conditioning_scale` [1] what the residuals are
    multiplied by. `output` is the last residual, that of the middle. `unet` is the configuration of the UNet
    beside it, whose sizes are the default ones.
    """
    own = {"out_channels": config["in_channels"], "sample_size": unet["sample_size"]}
    plain = read_signature("UNet2DConditionModel", {**config, **own})
    factor = pixels_per_latent(config)
    image = TensorSpec(
        IMAGE, ("batch", int(config.get("conditioning_channels") or 3), "control_height", "control_width")
    )
    sizes = plain.sizes | _level_sizes(plain, config)
    return replace(
        plain,
        architecture=CONTROL_NET,
        conditioning=(*plain.conditioning, image, TensorSpec(SCALE, (1,))),
        output=residual_specs(config, DOWN_OUT, MID_OUT)[-1],
        sizes=sizes | {pixels: factor * sizes[side] for pixels, side in _PIXELS.items()},
    )


def controlled_signature(config: Config, controls: tuple[Config, ...]) -> Signature:
    """Return the signature of a UNet and its control networks as one network: images in, prediction out."""
    plain = read_signature("UNet2DConditionModel", config)
    specs = [control_signature(control, config) for control in controls]
    images = [
        replace(next(spec for spec in control.conditioning if spec.name == IMAGE), name=name)
        for control, name in zip(specs, image_names(len(specs)), strict=True)
    ]
    pixels = pixels_per_latent(controls[0])
    return replace(
        plain,
        architecture=CONTROLLED,
        conditioning=(*plain.conditioning, *images, TensorSpec(SCALE, (len(controls),))),
        sizes=plain.sizes | {name: pixels * plain.sizes[side] for name, side in _PIXELS.items()},
    )


def residual_specs(config: Config, down: str, mid: str) -> tuple[TensorSpec, ...]:
    """Return the residuals of an encoder, one a skip connection and that of the middle behind them."""
    channels = [int(width) for width in config["block_out_channels"]]
    layers = config["layers_per_block"]
    shapes = [(channels[0], 0)]
    for level, width in enumerate(channels):
        count = int(layers if isinstance(layers, int) else layers[level])
        shapes += [(width, level)] * count
        if level < len(channels) - 1:
            shapes.append((width, level + 1))
    shapes.append((channels[-1], len(channels) - 1))
    names = [*(f"{down}_{k}" for k in range(len(shapes) - 1)), mid]
    return tuple(
        TensorSpec(name, ("batch", width, _side("height", level), _side("width", level)))
        for name, (width, level) in zip(names, shapes, strict=True)
    )


def pixels_per_latent(config: Config) -> int:
    """Return how many pixels of the control image are one of the sample: its embedding halves it so often."""
    return int(2 ** (len(config["conditioning_embedding_out_channels"]) - 1))


def side_factor(extent: str, pixels: int) -> tuple[str, int, int] | None:
    """Return (side, numerator, denominator) of an extent that follows from the sample's `side`, else None.

    `height_4` is ("height", 1, 4); with 8 `pixels` a latent, `control_width` is ("width", 8, 1).
    """
    if extent in _PIXELS:
        return _PIXELS[extent], pixels, 1
    found = _LEVEL.fullmatch(extent)
    return None if found is None else (found[1], 1, int(found[2]))


def halvings(signature: Signature) -> int:
    """Return what sides must be divisible by so that lower levels can have inputs of their own, else 1."""
    found = [_LEVEL.fullmatch(str(extent)) for spec in signature.conditioning for extent in spec.shape]
    return max((int(match[2]) for match in found if match), default=1)


def part_of_layer(name: str) -> tuple[str, str]:
    """Return which network of a ControlledNetwork a layer is in ("" in any other), and its name there.

    `controlnet.nets.1.mid_block.x` is ("controlnet.nets.1", "mid_block.x").
    """
    found = _PART.fullmatch(name)
    return ("", name) if found is None else (found[1], found[2])


def _side(name: str, level: int) -> str:
    return name if level == 0 else f"{name}_{2**level}"


def _level_sizes(plain: Signature, config: Config) -> dict[str, int]:
    levels = range(1, len(config["block_out_channels"]))
    return {
        _side(side, level): -(-plain.sizes[side] // 2**level)
        for level in levels
        for side in ("height", "width")
    }


def _path(name: str) -> tuple[str | int, ...]:
    if name in ("text_embeds", "time_ids"):
        return ("added_cond_kwargs", name)
    index = name.removeprefix(f"{DOWN}_")
    return (DOWN, int(index)) if index != name else (name,)
