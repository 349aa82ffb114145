"""Open a picture as a pipeline is given it."""

from __future__ import annotations

from typing import Any

from accuquant.errors import UsageError


def open_picture(path: str, mode: str, size: tuple[int, int]) -> Any:
    """Return the image at `path` in a mode of Pillow, cut and scaled to `size`. Raises UsageError."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(path)).convert(mode)  # as diffusers.utils.load_image
    except Exception as fault:  # Pillow raises many unrelated kinds for damaged and for huge files
        raise UsageError(
            f"image '{path}'",
            got=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}",
            expected="an image that can be read",
            remedy="Remove the file, or save it again",
        ) from fault
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
