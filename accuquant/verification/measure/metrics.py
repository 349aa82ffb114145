"""How much two images or two latents differ, one value an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from accuquant.errors import VerificationError

#: Images whose mean squared error is below 1e-10 count as identical, so that no metric is infinite.
MAX_PSNR = 100.0
_SSIM_RADIUS = 5
_SSIM_SIGMA = 1.5


def to_images(latents: Tensor) -> Tensor:
    """Map latents of a pixel-space model to images in [0, 1]: (x / 2 + 0.5) clamped."""
    return (latents / 2 + 0.5).clamp(0, 1)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB: images [N, C, H, W] in [0, 1] -> [N], at most 100.

    Of a video [N, F, C, H, W] it is that of the squared error over all of its frames.
    """
    _check_shapes(images, reference)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(10 ** (-MAX_PSNR / 10)).log10()


def worst_frame_psnr(videos: Tensor, reference: Tensor) -> Tensor:
    """Return the signal-to-noise ratio in dB of each video's worst frame: [N, F, C, H, W] -> [N]."""
    frames = psnr(videos.flatten(0, 1), reference.flatten(0, 1))
    return frames.reshape(videos.shape[:2]).amin(1)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity: images [N, C, H, W] in [0, 1] -> [N], 1 where they are equal.

    Wang et al. 2004, eq. 13, with a Gaussian window of 11 pixels (sigma 1.5) over reflected borders, as
    torchmetrics computes it. Of a video [N, F, C, H, W] it is the mean over its frames. Raises
    VerificationError for images that are smaller than half a window.
    """
    _check_shapes(images, reference)
    if images.ndim == 5:
        frames = ssim(images.flatten(0, 1), reference.flatten(0, 1))
        return frames.reshape(images.shape[:2]).mean(1)
    if min(images.shape[-2:]) <= _SSIM_RADIUS:
        raise VerificationError(
            "structural similarity",
            got=f"images of {images.shape[-2]}x{images.shape[-1]} pixels",
            expected=f"more than {_SSIM_RADIUS} pixels a side, half the window of the metric",
            remedy="Verify a model with larger images",
        )
    x, y = images.double(), reference.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x**2 + _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variances + 9e-4)
    return (luminance * structure).mean((1, 2, 3))


def cosine(latents: Tensor, reference: Tensor) -> Tensor:
    """Return the cosine of the angle between two latents: [N, ...] -> [N]."""
    _check_shapes(latents, reference)
    return torch.cosine_similarity(latents.flatten(1).double(), reference.flatten(1).double(), dim=1)


def mse(latents: Tensor, reference: Tensor) -> Tensor:
    """Return the squared error, averaged over the elements of each latent: [N, ...] -> [N]."""
    _check_shapes(latents, reference)
    return (latents.double() - reference.double()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Summary:
    """Statistics of one metric over the images. A few seeds diverge: read the median before the mean."""

    median: float
    mean: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Summary:
        """Summarize values [N]."""
        array = np.asarray(values, np.float64)
        return cls(float(np.median(array)), float(array.mean()), float(array.min()), float(array.max()))


@dataclass(frozen=True)
class Curve:
    """A quantity at every step, summarized over the images: each tuple has one value a step."""

    median: tuple[float, ...]
    mean: tuple[float, ...]
    p10: tuple[float, ...]
    p90: tuple[float, ...]

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Curve:
        """Summarize values [T, N] over N."""
        array = np.asarray(values, np.float64)
        p10, median, p90 = np.percentile(array, (10, 50, 90), axis=1).tolist()
        return cls(tuple(median), tuple(array.mean(1).tolist()), tuple(p10), tuple(p90))

    def to_dict(self) -> Mapping[str, list[float]]:
        """Return JSON-ready lists."""
        return {name: list(values) for name, values in asdict(self).items()}


def _blur(images: Tensor) -> Tensor:
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=images.dtype)
    taps = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (_SSIM_RADIUS,) * 4, mode="reflect")
    rows = functional.conv2d(padded, taps, groups=len(taps))
    return functional.conv2d(rows, taps.transpose(2, 3), groups=len(taps))


def _check_shapes(values: Tensor, reference: Tensor) -> None:
    if values.shape != reference.shape or len(values) == 0:
        raise VerificationError(
            "outputs",
            got=f"shape {tuple(values.shape)}",
            expected=f"the reference's shape {tuple(reference.shape)}, at least one image",
            remedy="Verify the folder against the pipeline that it was exported from",
        )
