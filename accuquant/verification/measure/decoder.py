"""Turn the latents of a pipeline into images with its own decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm2d
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.one_step import OneStepScheduler
from accuquant.denoising.start import Start
from accuquant.errors import VerificationError
from accuquant.networks.device import device_of
from accuquant.pipelines.families import FAMILIES, Family
from accuquant.pipelines.source import Source, load_component
from accuquant.verification.measure.metrics import to_images
from accuquant.verification.measure.video import to_videos, unpacked_video

#: Latents [N, C, H, W] -> images [N, 3, H', W'] in [0, 1]; of videos [N, C, F, H, W] -> [N, F', 3, H', W'].
Decode = Callable[[Tensor], Tensor]
_DECODERS = ("vae", "vqvae")
#: Decoders that pipelines call in ways of their own.
_OTHERS = ("movq", "decoder", "vqgan")
_BATCH = 8


def load_decoder(source: Source) -> Decode:
    """Return what makes images of the latents of `source`; pixel-space pipelines need no network for it.

    Raises VerificationError for a decoder that is not known, SourceError for one that is damaged.
    """
    other = next((part for part in _OTHERS if (source.folder / part).is_dir()), None)
    if other is not None:
        raise VerificationError(
            f"pipeline '{source.name}'",
            got=f"a pipeline whose latents are decoded to images by its {other}",
            expected=f"a pixel-space pipeline, or one with {' or '.join(_DECODERS)}",
            remedy="Call accuquant.verification.verify from Python with decode=function",
        )
    part = decoder_part(source)
    return to_images if part is None else _decoder(source, part)


def decoder_part(source: Source) -> str | None:
    """Return the name of the pipeline's autoencoder, None for a pipeline that has none."""
    return next((part for part in _DECODERS if (source.folder / part).is_dir()), None)


def blank_end(source: Source, start: Start, count: int) -> Tensor:
    """Return what a trajectory may end with, all zeros, `count` times: a generator makes another shape."""
    if not isinstance(source.scheduler, OneStepScheduler):
        return torch.zeros_like(start.latents[:count])
    shape = source.signature.output.resolve(source.signature.sizes | {"batch": count})
    return torch.zeros(shape)


def _decoder(source: Source, part: str) -> Decode:
    device = device_of(source.network)
    network = load_component(source.folder, part, source.loading).to(device)

    def decode(latents: Tensor) -> Tensor:
        latents = latents.to(device)
        images: Tensor = network.decode(latents, *_time(network.config, latents), return_dict=False)[0]
        return images

    return decode_with(decode, preparation(source, network))


def preparation(source: Source, autoencoder: Any) -> Callable[[Tensor], Tensor]:
    """Return what the pipeline of `source` does to latents before its autoencoder decodes them."""
    config = autoencoder.config
    scaled = not FAMILIES.get(source.pipeline_class, Family()).unscaled_latents
    factor = float(getattr(config, "scaling_factor", 1.0)) if scaled else 1.0
    shift = float(getattr(config, "shift_factor", None) or 0.0) if scaled else 0.0
    mean, std = (_statistics(autoencoder, name) for name in ("latents_mean", "latents_std"))
    # FLUX.2 normalizes patches of 2x2 latents; Qwen-Image's autoencoder is one of videos, with one frame
    normalization = getattr(autoencoder, "bn", None)
    of_frames = hasattr(config, "temperal_downsample")

    def prepare(latents: Tensor) -> Tensor:
        if latents.ndim == 3:
            latents = unpacked_video(latents, source.signature, _patch(source))
        _check_unpacked(latents)
        if normalization is not None:
            prepared = _denormalized(latents, normalization, float(config.batch_norm_eps))
        elif mean is not None and std is not None:  # SDXL variants; AutoencoderKL's formula
            prepared = latents * _along(std, latents) / factor + _along(mean, latents)
        else:
            prepared = latents / factor + shift
        return prepared.unsqueeze(2) if of_frames and prepared.ndim == 4 else prepared

    return prepare


def decode_with(network: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor]) -> Decode:
    """Return what makes images of latents with the decoder `network`, a few at a time."""

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        batches = torch.split(prepare(latents), _BATCH)
        made = torch.cat([network(batch).to(latents.device) for batch in batches])
        if made.ndim == 4:
            return to_images(made)
        return to_images(made[:, :, 0]) if latents.ndim == 4 else to_videos(made)

    return decode


def unpacked(latents: Tensor, conditioning: Conditioning) -> Tensor:
    """Undo Flux's packing of 2x2 latents into patches: [N, P, 4 C] -> [N, C, H, W]; others are returned.

    The network is told where the patches stand: `img_ids` [P, 3], or [N, copies, P, 4], holds row and column
    behind the number of the image.
    """
    rowed = conditioning.tensors.get("img_ids")
    ids = conditioning.shared.get("img_ids") if rowed is None else rowed[0, 0]
    if latents.ndim != 3 or ids is None:
        return latents
    count, patches, channels = latents.shape
    # behind the image's own patches are those of images that the prompt refers to
    places = ids[:patches, 1:3]
    rows, columns = (int(n) + 1 for n in places.amax(0) - places.amin(0))
    grid = latents.reshape(count, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(count, channels // 4, 2 * rows, 2 * columns)


def _patch(source: Source) -> tuple[int, Any]:
    """Return the frames and the sides of what one token of a video stands for."""
    own: Any = getattr(source.network, "config", None)
    return int(getattr(own, "patch_size_t", None) or 1), getattr(own, "patch_size", 1)


def _denormalized(latents: Tensor, normalization: BatchNorm2d, eps: float) -> Tensor:
    """Undo a batch normalization of 2x2 latents as one patch: [N, C, H, W] -> the same."""
    mean, variance = normalization.running_mean, normalization.running_var
    assert mean is not None
    assert variance is not None
    deviation = (variance + eps).sqrt().reshape(-1, 1, 1)
    patches = pixel_unshuffle(latents, 2)
    return pixel_shuffle(patches * deviation.to(latents) + mean.reshape(-1, 1, 1).to(latents), 2)


def _check_unpacked(latents: Tensor) -> None:
    """Raise VerificationError for patches that nothing has unpacked: an autoencoder knows no patches."""
    if latents.ndim == 3:
        raise VerificationError(
            f"latents {list(latents.shape)}",
            got="patches that nothing says how to unpack",
            expected="latents [N, C, H, W], or patches whose network is told their places (img_ids) or how "
            "many there are (num_frames, height, width)",
            remedy="Call accuquant.verification.verify from Python with decode=function",
        )


def _statistics(network: Any, name: str) -> Tensor | None:
    """Return the mean or the deviation of each channel [C]: an autoencoder's configuration or buffer."""
    values = getattr(network.config, name, None)
    if values is None:
        values = dict(network.named_buffers()).get(name)
    return None if values is None else torch.as_tensor(values).cpu()


def _along(values: Tensor, latents: Tensor) -> Tensor:
    return values.to(latents.device).reshape(1, -1, *(1 for _ in latents.shape[2:]))


def _time(config: Any, latents: Tensor) -> tuple[Tensor, ...]:
    """Return what a decoder that is told a timestep gets: zeros [N], the default of LTX's pipelines."""
    told = getattr(config, "timestep_conditioning", False)
    return (torch.zeros(len(latents), device=latents.device),) if told else ()
