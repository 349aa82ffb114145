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
from accuquant.units.tensor_tree import Tree

#: Larger images are scaled down to this edge, so that the page stays small.
MAX_EDGE = 256
#: From so many times its height on a picture is a strip, which may be as many times as wide.
_STRIP = 3
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
    """Pictures of the first seeds and of the worst ones; differences are amplified `amplification` times.

    `ratio` is a picture's width by its height.
    """

    first: tuple[Picture, ...]
    worst: tuple[Picture, ...]
    amplification: int
    pixelated: bool
    ratio: float = 1.0


@dataclass(frozen=True)
class _Pair:
    """One image of both branches, [C, H, W] in [0, 1]; `index` counts from 0 over all batches."""

    index: int
    psnr: float
    reference: Tensor
    quantized: Tensor


class Selection:
    """The images that a page shows, chosen while batches of them come and go.

    The first `num_first`, whatever they are, and of the others the `num_worst` with the lowest PSNR. A
    selection may begin with image `begin`, and become part of another that has come so far.
    """

    def __init__(self, num_first: int = 8, num_worst: int = 2, *, begin: int = 0) -> None:
        self._num_first, self._num_worst = num_first, num_worst
        self._seen = begin
        self._first: list[_Pair] = []
        self._worst: list[_Pair] = []

    def add(self, reference: Tensor, quantized: Tensor, psnr: Tensor) -> None:
        """Take in the next images [N, C, H, W] in [0, 1] of both branches, and their PSNR [N]."""
        for row, decibels in enumerate(psnr.tolist()):
            index, self._seen = self._seen, self._seen + 1
            if index < self._num_first or self._is_among_worst(decibels):
                # copies: a row would keep its whole batch in memory
                self._keep(_Pair(index, decibels, reference[row].clone(), quantized[row].clone()))

    def to_tree(self) -> Tree:
        """Return what is selected; `take` reads it back."""
        pairs = sorted([*self._first, *self._worst], key=lambda pair: pair.index)
        return [[pair.index, pair.psnr, pair.reference, pair.quantized] for pair in pairs]

    def take(self, tree: Tree) -> None:
        """Add what `to_tree` returned of the next images."""
        for index, decibels, reference, quantized in tree:
            if index < self._num_first or self._is_among_worst(decibels):
                self._keep(_Pair(index, decibels, reference, quantized))

    def _keep(self, pair: _Pair) -> None:
        if pair.index < self._num_first:
            self._first.append(pair)
        else:
            self._worst = sorted([*self._worst, pair], key=lambda p: p.psnr)[: self._num_worst]

    def gallery(self, *, seed: int, prompts: Sequence[str] = ()) -> Gallery:
        """Return the pictures. Image k was made from prompt k, counted from the start again where fewer."""
        shown = [*self._first, *self._worst]
        factor = _amplification(torch.stack([pair.quantized - pair.reference for pair in shown]))
        height, width = shown[0].reference.shape[-2:]

        def picture(pair: _Pair) -> Picture:
            shrunk = [_shrink(image) for image in (pair.reference, pair.quantized)]
            before, after = (image.permute(1, 2, 0).numpy() for image in shrunk)
            return Picture(
                seed=seed + pair.index,
                prompt=prompts[pair.index % len(prompts)] if prompts else "",
                psnr=pair.psnr,
                reference=png(_to_bytes(before)),
                quantized=png(_to_bytes(after)),
                difference=png(signed_difference(before, after, factor)),
            )

        return Gallery(
            first=tuple(map(picture, self._first)),
            worst=tuple(map(picture, self._worst)),
            amplification=factor,
            pixelated=max(height, width) <= MAX_EDGE // 2,
            ratio=round(width / height, 3),
        )

    def _is_among_worst(self, psnr: float) -> bool:
        return len(self._worst) < self._num_worst or (self._num_worst > 0 and psnr < self._worst[-1].psnr)


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
    # the frames of a video stand side by side
    edge = MAX_EDGE if width < _STRIP * height else _STRIP * MAX_EDGE
    if max(height, width) <= edge:
        return image
    ratio = edge / max(height, width)
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return torch.nn.functional.interpolate(image[None], size, mode="area")[0]


def _amplification(differences: Tensor) -> int:
    """Return the largest factor that saturates at most 0.5 % of the pixels."""
    size = differences.mean(1).abs().flatten()
    high = float(torch.quantile(size, 0.995)) if size.numel() < 2**24 else float(size.max())
    return max((a for a in AMPLIFICATIONS if a * high <= 1), default=1)
