"""Real images to compare with: a folder, or an .npz of images or of their statistics."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from accuquant.errors import UsageError, VerificationError
from accuquant.verification.measure.feature_networks import FEATURES, SPATIAL
from accuquant.verification.measure.frechet import Gaussian

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Statistics in an .npz: clean-fid and pytorch-fid write the first pair, OpenAI's evaluator both.
_STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
_IMAGES = "arr_0"
_FORMS = "mu and sigma (clean-fid), with mu_s and sigma_s (OpenAI's evaluator), or images arr_0 [N, H, W, 3]"


@dataclass(frozen=True)
class RealImages:
    """Where real images lie, how many, and the statistics that came with them, by output of the network."""

    path: Path
    count: int
    statistics: dict[str, Gaussian]
    files: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: Path) -> RealImages:
        """Look at a folder or an .npz. Raises UsageError for one that holds neither images nor statistics."""
        if path.is_dir():
            files = _files(path)
            return cls(path, len(files), {}, files)
        arrays = _arrays(path)
        statistics = {}
        for output, (mean, covariance) in _STATISTICS.items():
            if mean in arrays and covariance in arrays:
                statistics[output] = _gaussian(path, mean, covariance)
        count = _shape_of_images(path)[0] if _IMAGES in arrays else 0
        if not statistics and not count:
            raise UsageError(
                f"--real '{path}'",
                got=f"an .npz with {', '.join(sorted(arrays)) or 'nothing'}",
                expected=_FORMS,
                remedy="Give a reference batch of that form, or a folder of images",
            )
        return cls(path, count, statistics)

    def batches(self, members: range, size: int, *, gray: bool) -> Iterator[Tensor]:
        """Yield some of the images, [n, C, H, W] in [0, 1]: `size` at most, those of a batch of one shape."""
        found: list[Tensor] = []
        for image in self._images(members, gray=gray):
            if found and (len(found) == size or image.shape != found[0].shape):
                yield torch.stack(found)
                found = []
            found.append(image)
        if found:
            yield torch.stack(found)

    def _images(self, members: range, *, gray: bool) -> Iterator[Tensor]:
        if self.files:
            yield from (_pixels(_opened(self.files[k]), gray=gray) for k in members)
            return
        shape, dtype = _shape_of_images(self.path), np.dtype(np.uint8)
        size = int(np.prod(shape[1:])) * dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{_IMAGES}.npy") as file:
            _read_header(file)
            file.seek(members.start * size, 1)  # a compressed member reads what it passes over
            for _ in members:
                pixels = np.frombuffer(file.read(size), dtype).reshape(shape[1:])
                yield _pixels(Image.fromarray(pixels), gray=gray)


def check_width(path: Path, network: str, statistics: Gaussian, width: int) -> None:
    """Raise VerificationError for statistics of other features than the network's."""
    if statistics.mean.shape != (width,):
        raise VerificationError(
            f"--real '{path}'",
            got=f"statistics of {statistics.mean.size} features",
            expected=f"{width}, the width of '{network}'",
            remedy="Give statistics of that network (--features names it), or a folder of images",
        )


def _files(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES))
    if not found:
        raise UsageError(
            f"--real '{folder}'",
            got="no image",
            expected=f"files that end in {', '.join(_SUFFIXES)}",
            remedy="Name a folder of real images",
        )
    return found


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as fault:
        raise VerificationError(
            f"real image '{path}'", got=str(fault), expected="a readable image", remedy="Remove or replace it"
        ) from fault


def _pixels(image: Image.Image, *, gray: bool) -> Tensor:
    array = np.asarray(image.convert("L" if gray else "RGB"), np.float32) / 255
    return torch.from_numpy(array[None] if gray else array.transpose(2, 0, 1).copy())


def _arrays(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as fault:
        raise UsageError(
            f"--real '{path}'", got=str(fault), expected=_FORMS, remedy="Give a folder or an .npz"
        ) from fault


def _gaussian(path: Path, mean: str, covariance: str) -> Gaussian:
    with np.load(path, allow_pickle=False) as file:
        found = Gaussian(np.asarray(file[mean], np.float64), np.asarray(file[covariance], np.float64))
    width = found.mean.size
    if found.mean.ndim != 1 or found.covariance.shape != (width, width):
        raise UsageError(
            f"--real '{path}'",
            got=f"{mean} {list(found.mean.shape)} and {covariance} {list(found.covariance.shape)}",
            expected="[D] and [D, D]",
            remedy="The file is damaged. Download it again",
        )
    return found


def _shape_of_images(path: Path) -> tuple[int, ...]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{_IMAGES}.npy") as file:
        shape, fortran, dtype = _read_header(file)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran:
        raise UsageError(
            f"--real '{path}'",
            got=f"{_IMAGES} {list(shape)} of {dtype}",
            expected="images [N, H, W, 3] of uint8, in C order",
            remedy="Save the images in that form: numpy.savez(path, images)",
        )
    return shape


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return read[version](file)
