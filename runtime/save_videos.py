"""Write sampled videos to a folder: an animated WebP each, without loss, and a picture of all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant._util.files import atomic_write
from accuquant.errors import UsageError
from accuquant.runtime.save_images import GRID_NAME, picture, to_uint8

#: Frames a second that players show, near what Wan (16) and LTX (25) are trained for.
FRAME_RATE = 20
#: Frames of a video in the picture of all, spread evenly from the first to the last.
_SHOWN = 8


def save_videos(videos: npt.NDArray[Any], output_dir: str | os.PathLike[str]) -> list[Path]:
    """Write videos [N, F, H, W, C] (float in [0, 1], or uint8; C is 1 or 3) as animated WebP files.

    Returns the paths 00000.webp, 00001.webp, ... and, last, grid.png: a row of frames for each video. WebP
    plays in every browser and, saved without loss, holds every RGB level; no library but Pillow writes it.
    Each file is written whole or not at all.
    """
    if videos.ndim != 5 or 0 in videos.shape[:2]:
        raise UsageError(
            "videos",
            got=f"an array of shape {list(videos.shape)}",
            expected="[N, F, H, W, C] with at least one video of one frame and 1 or 3 channels",
            remedy="Give videos as accuquant.sample returns them",
        )
    count, frames = videos.shape[:2]
    levels = to_uint8(videos.reshape(count * frames, *videos.shape[2:])).reshape(videos.shape)
    folder = Path(output_dir)
    paths = [folder / f"{index:05d}.webp" for index in range(count)]
    for path, video in zip(paths, levels, strict=True):
        first, *others = [picture(frame).convert("RGB") for frame in video]
        with atomic_write(path) as temporary:
            first.save(
                temporary, format="WEBP", save_all=True, append_images=others, lossless=True,
                duration=round(1000 / FRAME_RATE), loop=0, exact=True,
            )  # fmt: skip
    shown = np.linspace(0, frames - 1, min(frames, _SHOWN)).round().astype(int)
    rows = np.concatenate(list(np.concatenate(list(levels[:, shown].swapaxes(0, 1)), axis=2)), axis=0)
    with atomic_write(folder / GRID_NAME) as temporary:
        picture(rows).save(temporary, format="PNG")
    return [*paths, folder / GRID_NAME]
