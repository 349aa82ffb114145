"""Turn the latents of a pipeline into images with its own decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accuquant.denoising.conditioning import Conditioning
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
    part = next((part for part in _DECODERS if (source.folder / part).is_dir()), None)
    return to_images if part is None else _decoder(source, part)


def _decoder(source: Source, part: str) -> Decode:
    device = device_of(source.network)
    network = load_component(source.folder, part, source.loading).to(device)
    config = network.config
    scaled = not FAMILIES.get(source.pipeline_class, Family()).unscaled_latents
    factor = float(getattr(config, "scaling_factor", 1.0)) if scaled else 1.0
    shift = float(getattr(config, "shift_factor", None) or 0.0) if scaled else 0.0
    mean, std = (_statistics(network, name) for name in ("latents_mean", "latents_std"))
    own: Any = source.network.config
    patch = (int(getattr(own, "patch_size_t", None) or 1), getattr(own, "patch_size", 1))

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        if latents.ndim == 3:
            latents = unpacked_video(latents, source.signature, patch)
        _check_unpacked(latents)
        if mean is not None and std is not None:  # SDXL variants; AutoencoderKL's formula
            prepared = latents * _along(std, latents) / factor + _along(mean, latents)
        else:
            prepared = latents / factor + shift
        images = [
            network.decode(batch.to(device), *_time(config, batch, device), return_dict=False)[0]
            for batch in torch.split(prepared, _BATCH)
        ]
        decoded = torch.cat([image.to(latents.device) for image in images])
        return to_videos(decoded) if decoded.ndim == 5 else to_images(decoded)

    return decode


def unpacked(latents: Tensor, conditioning: Conditioning) -> Tensor:
    """Undo Flux's packing of 2x2 latents into patches: [N, P, 4 C] -> [N, C, H, W]; others are returned.

    The network is told where the patches stand: `img_ids` [P, 3] holds row and column behind a zero.
    """
    if latents.ndim != 3 or "img_ids" not in conditioning.shared:
        return latents
    rows, columns = (int(n) + 1 for n in conditioning.shared["img_ids"][:, 1:].amax(0))
    count, _, channels = latents.shape
    grid = latents.reshape(count, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(count, channels // 4, 2 * rows, 2 * columns)


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


def _time(config: Any, latents: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Return what a decoder that is told a timestep gets: zeros [N], the default of LTX's pipelines."""
    return (
        (torch.zeros(len(latents), device=device),) if getattr(config, "timestep_conditioning", False) else ()
    )
