"""Pictures for the report: small PNGs as data URIs, and differences made visible."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accuquant.qparams import FloatArray

#: Larger images are scaled down to this edge, so that the page stays small.
MAX_EDGE = 256
AMPLIFICATIONS = (1, 2, 4, 8, 16, 32, 64)
#: Colours of pixels that int8 made darker and brighter.
_DARKER, _BRIGHTER = (70, 135, 205), (222, 112, 44)


@dataclass(frozen=True)
class Picture:
    """One seed: the three images as data URIs and the PSNR between the first two; the prompt, or ""."""

    seed: int
    prompt: str
    psnr: float
    reference: str
    quantized: str
    difference: str


@dataclass(frozen=True)
class Gallery:
    """Pictures of the first seeds and of the worst ones; differences are amplified `amplification` times."""

    first: tuple[Picture, ...]
    worst: tuple[Picture, ...]
    amplification: int
    pixelated: bool


def make_gallery(
    reference: Tensor,
    quantized: Tensor,
    psnr: Tensor,
    *,
    seed: int,
    prompts: Sequence[str] = (),
    num_first: int = 8,
    num_worst: int = 2,
) -> Gallery:
    """Choose the first seeds and those with the lowest PSNR from images [N, C, H, W] in [0, 1].

    Image k was made from prompt k, counted from the start again where there are fewer prompts.
    """
    first = list(range(min(num_first, len(psnr))))
    worst = [i for i in torch.argsort(psnr).tolist() if i not in first][:num_worst]
    shown = first + worst
    factor = _amplification((quantized - reference)[shown])

    def picture(index: int) -> Picture:
        pair = [_shrink(images[index]) for images in (reference, quantized)]
        before, after = (image.permute(1, 2, 0).numpy() for image in pair)
        return Picture(
            seed=seed + index,
            prompt=prompts[index % len(prompts)] if prompts else "",
            psnr=float(psnr[index]),
            reference=png(_to_bytes(before)),
            quantized=png(_to_bytes(after)),
            difference=png(signed_difference(before, after, factor)),
        )

    return Gallery(
        first=tuple(map(picture, first)),
        worst=tuple(map(picture, worst)),
        amplification=factor,
        pixelated=max(reference.shape[-2:]) <= MAX_EDGE // 2,
    )


def signed_difference(before: FloatArray, after: FloatArray, factor: float) -> npt.NDArray[np.uint8]:
    """Return RGBA [H, W, 4]: the colour is the sign of after - before, the opacity its amplified size."""
    difference = (after - before).mean(-1)
    rgba = np.empty((*difference.shape, 4), np.uint8)
    rgba[..., :3] = np.where((difference < 0)[..., None], _DARKER, _BRIGHTER)
    rgba[..., 3] = np.rint(np.clip(np.abs(difference) * factor, 0, 1) * 255)
    return rgba


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """Encode [H, W], [H, W, 3] or [H, W, 4] as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _to_bytes(image: FloatArray) -> npt.NDArray[np.uint8]:
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] < 3 else pixels[..., :3]


def _shrink(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    if max(height, width) <= MAX_EDGE:
        return image
    ratio = MAX_EDGE / max(height, width)
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return torch.nn.functional.interpolate(image[None], size, mode="area")[0]


def _amplification(differences: Tensor) -> int:
    """Return the largest factor that saturates at most 0.5 % of the pixels."""
    size = differences.mean(1).abs().flatten()
    high = float(torch.quantile(size, 0.995)) if size.numel() < 2**24 else float(size.max())
    return max((a for a in AMPLIFICATIONS if a * high <= 1), default=1)
