"""Write sampled images to a folder: one PNG each, and a grid of all."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from accuquant._util.files import atomic_write
from accuquant.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

GRID_NAME = "grid.png"


def save_images(images: npt.NDArray[Any], output_dir: str | os.PathLike[str]) -> list[Path]:
    """Write images [N, H, W, C] (float in [0, 1], or uint8; C is 1 or 3) as PNG files.

    Returns the paths 00000.png, 00001.png, ... and, last, grid.png. Each file is written whole or
    not at all.
    """
    levels = to_uint8(images)
    folder = Path(output_dir)
    names = [f"{index:05d}.png" for index in range(len(levels))]
    paths = []
    for name, pixels in zip([*names, GRID_NAME], [*levels, image_grid(levels)], strict=True):
        with atomic_write(folder / name) as temporary:
            picture(pixels).save(temporary, format="PNG")
        paths.append(folder / name)
    return paths


def to_uint8(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return images [N, H, W, C] as uint8, rounded as diffusers does; uint8 passes unchanged."""
    if images.ndim != 4 or len(images) == 0:
        raise UsageError(
            "images",
            got=f"an array of shape {list(images.shape)}",
            expected="[N, H, W, C] with at least one image and 1 or 3 channels",
            remedy="Give images as sample_images returns them",
        )
    check_channels(images.shape[-1])
    if images.dtype == np.uint8:
        return images
    levels: npt.NDArray[np.uint8] = (images * 255).round().astype(np.uint8)
    return levels


def check_channels(channels: int) -> None:
    """Raise UsageError unless images with so many channels can be saved as PNG files: gray or RGB."""
    if channels not in (1, 3):
        raise UsageError(
            "images",
            got=f"{channels} channels",
            expected="1 or 3 channels: gray or RGB",
            remedy="Sample in Python, and keep the array: numpy.save",
        )


def image_grid(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Tile images [N, H, W, C] row by row into a nearly square picture [rows H, columns W, C]."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = images
    rowwise = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid: npt.NDArray[np.uint8] = rowwise.reshape(rows * height, columns * width, channels)
    return grid


def picture(pixels: npt.NDArray[np.uint8]) -> Image:
    """Return levels [H, W, C], C is 1 or 3, as an image of Pillow."""
    try:
        from PIL import Image
    except ImportError as fault:
        raise MissingDependencyError(
            "saving images",
            got="no Pillow package",
            expected="Pillow",
            remedy="Install it: pip install pillow",
        ) from fault
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
