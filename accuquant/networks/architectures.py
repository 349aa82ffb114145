"""Which diffusers networks are supported, and what each of them takes: read from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, as_facts
from accuquant.errors import SourceError
from accuquant.networks.signature import Dim, Signature, TensorSpec

Config = Mapping[str, Any]

#: Networks that make an image in one call: their timestep is always 0, and changes nothing.
ONE_STEP = ("FeedForwardNetwork", "DecoderNetwork")
#: What a pipeline divides the scheduler's timestep by before it calls the network.
_DIVISORS = {"FluxTransformer2DModel": 1000.0}

#: Steps' values stay float32: Euler, Heun and flow-matching samplers use fractions.
_TIMESTEP = TensorSpec("timestep", ("steps",), "float32")
_TEXT_TOKENS = 77
_T5_TOKENS = 120
#: SDXL describes an image by six numbers, its refiner by five.
_TIME_IDS, _REFINER_TIME_IDS = 6, 5


def read_signature(architecture: str, config: Config) -> Signature:
    """Return the call signature of a diffusers network class from its configuration.

    What another class takes is read off its pipeline's calls (pipelines/called_source.py). An entry, a
    function `config -> Signature` in SUPPORTED, is for what no call shows (DiT and PixArt make positions in
    Python, so a trace has one size), and spares a run of the pipeline. Names are those of the class's
    forward; conditioning inside `added_cond_kwargs` is listed under its own name.
    Raises SourceError for a class, or a variant of one, that has no entry.
    """
    reader = SUPPORTED.get(architecture)
    if reader is None:
        raise SourceError(
            f"network {architecture}",
            got="an architecture that AccuQuant does not know",
            expected=f"one of {', '.join(SUPPORTED)}",
            remedy="Use a pipeline with one of these networks, or add a reader for this one to "
            "accuquant/networks/architectures.py (docs/networks.md says how)",
        )
    try:
        as_facts(dict(config), _ConfigFacts)
        return reader(config)
    except (FactsError, KeyError, TypeError, ValueError, IndexError) as fault:
        raise SourceError(
            f"configuration of network {architecture}",
            got=str(fault) if isinstance(fault, FactsError) else f"{type(fault).__name__}: {fault}",
            expected="the config.json that diffusers writes for it",
            remedy="The file is damaged: copy or download the pipeline again",
        ) from fault


_Size = Annotated[int, Meta(ge=0, le=1 << 20)]
# not tuple[_Size, _Size]: msgspec 0.23 crashes when the garbage collector meets it beside a bounded int
_TwoSizes = Annotated[tuple[_Size, ...], Meta(min_length=2, max_length=2)]


@dataclass(frozen=True)
class _ConfigFacts:
    """What a signature is read from, with the types that diffusers gives it."""

    sample_size: _Size | _TwoSizes | None = None
    in_channels: _Size | None = None
    out_channels: _Size | None = None
    cross_attention_dim: _Size | tuple[_Size, ...] | None = None
    joint_attention_dim: _Size | None = None
    pooled_projection_dim: _Size | None = None
    encoder_hid_dim: _Size | None = None
    time_cond_proj_dim: _Size | None = None
    caption_channels: _Size | None = None
    projection_class_embeddings_input_dim: _Size | None = None
    addition_time_embed_dim: _Size | None = None
    num_class_embeds: _Size | None = None
    block_out_channels: tuple[_Size, ...] = ()
    use_additional_conditions: bool | None = None
    guidance_embeds: bool | None = None


def timestep_divisor(architecture: str) -> float:
    """Return what the network's pipeline divides the scheduler's timestep by: 1, or 1000 for Flux."""
    return _DIVISORS.get(architecture, 1.0)


def _unet(config: Config) -> Signature:
    return _image_network("UNet2DModel", config, _labels(config))


def _text_unet(config: Config) -> Signature:
    _refuse_variants(config)
    width = config.get("encoder_hid_dim") or _first(config["cross_attention_dim"])
    specs = [TensorSpec("encoder_hidden_states", ("batch", "tokens", int(width)))]
    specs += _added_text_time(config)
    if config.get("time_cond_proj_dim"):  # latent consistency models embed the guidance scale
        specs.append(TensorSpec("timestep_cond", ("batch", int(config["time_cond_proj_dim"]))))
    return _image_network("UNet2DConditionModel", config, (*specs, *_labels(config)), tokens=_TEXT_TOKENS)


def _dit(config: Config) -> Signature:
    channels = int(config["out_channels"] or config["in_channels"])
    labels = TensorSpec("class_labels", ("batch",), "int64")
    return _patch_network("DiTTransformer2DModel", config, (labels,), channels, fixed_size=True)


def _pixart(config: Config) -> Signature:
    width = config.get("caption_channels") or config["cross_attention_dim"]
    specs = [
        TensorSpec("encoder_hidden_states", ("batch", "tokens", int(width))),
        TensorSpec("encoder_attention_mask", ("batch", "tokens"), "int64"),
    ]
    conditions = config.get("use_additional_conditions")
    if conditions or (conditions is None and config["sample_size"] == 128):  # PixArt's own default
        specs += [TensorSpec("resolution", ("batch", 2)), TensorSpec("aspect_ratio", ("batch", 1))]
    channels = int(config["out_channels"] or config["in_channels"])
    return _patch_network(
        "PixArtTransformer2DModel", config, tuple(specs), channels, fixed_size=True, tokens=_T5_TOKENS
    )


def _sd3(config: Config) -> Signature:
    specs = (
        TensorSpec("encoder_hidden_states", ("batch", "tokens", int(config["joint_attention_dim"]))),
        TensorSpec("pooled_projections", ("batch", int(config["pooled_projection_dim"]))),
    )
    channels = int(config["out_channels"] or config["in_channels"])
    return _patch_network(
        "SD3Transformer2DModel", config, specs, channels, fixed_size=False, tokens=2 * _TEXT_TOKENS
    )


def _flux(config: Config) -> Signature:
    channels = int(config["in_channels"])
    specs = [
        TensorSpec("encoder_hidden_states", ("batch", "tokens", int(config["joint_attention_dim"]))),
        TensorSpec("pooled_projections", ("batch", int(config["pooled_projection_dim"]))),
        TensorSpec("img_ids", ("patches", 3)),
        TensorSpec("txt_ids", ("tokens", 3)),
    ]
    if config.get("guidance_embeds"):
        specs.append(TensorSpec("guidance", ("batch",)))
    outputs = int(config["out_channels"] or channels)
    return Signature(
        architecture="FluxTransformer2DModel",
        sample=TensorSpec("hidden_states", ("batch", "patches", channels)),
        timestep=_TIMESTEP,
        conditioning=tuple(specs),
        output=TensorSpec("out_hidden_states", ("batch", "patches", outputs)),
        sizes={"batch": 1, "steps": 1, "patches": 4096, "tokens": 512},
        timestep_divisor=timestep_divisor("FluxTransformer2DModel"),
    )


def _feed_forward(config: Config) -> Signature:
    """Return the signature of a generator: the latent's shape and the image's have nothing in common."""
    return Signature(
        architecture="FeedForwardNetwork",
        sample=TensorSpec("sample", ("batch", *map(int, config["latent_shape"]))),
        timestep=_TIMESTEP,
        conditioning=(),
        output=TensorSpec("out_sample", ("batch", *map(int, config["image_shape"]))),
        sizes={"batch": 1, "steps": 1},
    )


def _decoder(config: Config) -> Signature:
    """Return the signature of an autoencoder's decoder, under Optimum's names."""
    height, width = map(int, config["latent_size"])
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return Signature(
        architecture="DecoderNetwork",
        sample=TensorSpec("latent_sample", ("batch", int(config["latent_channels"]), "height", "width")),
        timestep=_TIMESTEP,
        conditioning=(),
        output=TensorSpec("sample", ("batch", int(config["out_channels"]), "image_height", "image_width")),
        sizes={
            "batch": 1, "steps": 1, "height": height, "width": width,
            "image_height": height * factor, "image_width": width * factor,
        },
    )  # fmt: skip


#: Class of diffusers, or of AccuQuant's own -> how its configuration is read.
SUPPORTED: dict[str, Callable[[Config], Signature]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _text_unet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "FeedForwardNetwork": _feed_forward,
    "DecoderNetwork": _decoder,
}


def _image_network(
    architecture: str, config: Config, conditioning: tuple[TensorSpec, ...], **sizes: int
) -> Signature:
    """Return the signature of a UNet: any image size that its levels divide."""
    height, width = _image_size(config)
    return Signature(
        architecture=architecture,
        sample=TensorSpec("sample", ("batch", int(config["in_channels"]), "height", "width")),
        timestep=_TIMESTEP,
        conditioning=conditioning,
        output=TensorSpec("out_sample", ("batch", int(config["out_channels"]), "height", "width")),
        sizes={"batch": 1, "steps": 1, "height": height, "width": width, **sizes},
    )


def _patch_network(
    architecture: str,
    config: Config,
    conditioning: tuple[TensorSpec, ...],
    out_channels: int,
    *,
    fixed_size: bool,
    **sizes: int,
) -> Signature:
    """Return the signature of a transformer over image patches.

    With `fixed_size` the position embedding is a constant of one image size, computed in Python.
    """
    height, width = _image_size(config)
    image: tuple[Dim, Dim] = (height, width) if fixed_size else ("height", "width")
    named = {} if fixed_size else {"height": height, "width": width}
    return Signature(
        architecture=architecture,
        sample=TensorSpec("hidden_states", ("batch", int(config["in_channels"]), *image)),
        timestep=_TIMESTEP,
        conditioning=conditioning,
        output=TensorSpec("out_hidden_states", ("batch", out_channels, *image)),
        sizes={"batch": 1, "steps": 1, **named, **sizes},
    )


def _image_size(config: Config) -> tuple[int, int]:
    size = config["sample_size"] or 32
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _labels(config: Config) -> tuple[TensorSpec, ...]:
    """Return `class_labels`: a class, or a vector where diffusers projects one (unCLIP)."""
    kind = config.get("class_embed_type")
    if kind in ("projection", "simple_projection"):
        width = int(config["projection_class_embeddings_input_dim"])
        return (TensorSpec("class_labels", ("batch", width)),)
    if kind == "identity":
        return (TensorSpec("class_labels", ("batch", 4 * int(config["block_out_channels"][0]))),)
    if kind is None and config.get("num_class_embeds") is None:
        return ()
    return (TensorSpec("class_labels", ("batch",), "int64"),)


def _added_text_time(config: Config) -> list[TensorSpec]:
    if config.get("addition_embed_type") != "text_time":
        return []
    total = int(config["projection_class_embeddings_input_dim"])
    each = int(config["addition_time_embed_dim"])
    # SDXL's refiner has one text encoder, whose pooled vector is as wide as its tokens.
    refiner = total - _REFINER_TIME_IDS * each == _first(config["cross_attention_dim"])
    time_ids = _REFINER_TIME_IDS if refiner else _TIME_IDS
    return [
        TensorSpec("text_embeds", ("batch", total - time_ids * each)),
        TensorSpec("time_ids", ("batch", time_ids)),
    ]


def _refuse_variants(config: Config) -> None:
    """Raise SourceError where a UNet2DConditionModel takes image embeddings."""
    for key, known in (
        ("addition_embed_type", (None, "text", "text_time")),
        ("encoder_hid_dim_type", (None, "text_proj")),
    ):
        if config.get(key) not in known:
            raise SourceError(
                "network UNet2DConditionModel",
                got=f"{key} {config[key]!r}",
                expected=f"one of {', '.join(map(repr, known))}",
                remedy="Use a network that is conditioned by text or classes only (docs/networks.md)",
            )


def _first(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])
