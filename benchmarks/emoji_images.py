"""Read the emoji that the bundled colour models are trained on: Noto Emoji at 32x32, on white.

    npm pack emoji-datasource-google@16.0.0

The images are under the Apache licence 2.0, Copyright Google; the package that holds them is under MIT.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE, BORDER = 32, 1  # an emoji on the sheet, and the pixels around it
#: What a class is called -> the subcategories of Unicode that it takes its emoji from.
CLASSES = {
    "face": (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
        "face-unwell", "face-hat", "face-glasses", "face-concerned",
    ),
    "heart": ("heart",),
    "clock": ("time",),
    "person": ("person", "person-role"),
    "hand": ("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed"),
    "flag": ("country-flag",),
    "fruit": ("food-fruit", "food-vegetable"),
    "sign": ("zodiac", "religion"),
}  # fmt: skip


@dataclass(frozen=True)
class Emoji:
    """Images [N, 3, 32, 32] uint8 and the class of each [N], as an index into CLASSES."""

    images: Tensor
    labels: Tensor

    def of(self, *names: str) -> Emoji:
        """Return the emoji of some classes, labelled in the order of `names`."""
        parts = [self.images[self.labels == list(CLASSES).index(name)] for name in names]
        return Emoji(torch.cat(parts), torch.repeat_interleave(torch.tensor([len(part) for part in parts])))


def read_emoji(archive: Path) -> Emoji:
    """Read the npm package emoji-datasource-google -> the emoji of CLASSES, each skin tone as one."""
    with tarfile.open(archive) as package:
        entries = json.loads(_member(package, "package/emoji.json", archive))
        sheet = Image.open(io.BytesIO(_member(package, f"package/img/google/sheets/{SIDE}.png", archive)))
    drawn = sheet.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, drawn).convert("RGB"))
    images, labels = [], []
    for label, subcategories in enumerate(CLASSES.values()):
        for entry in entries:
            if entry["subcategory"] in subcategories:
                for drawing in (entry, *entry.get("skin_variations", {}).values()):
                    images.append(_cell(pixels, drawing["sheet_x"], drawing["sheet_y"]))
                    labels.append(label)
    return Emoji(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _member(package: tarfile.TarFile, name: str, archive: Path) -> bytes:
    try:
        file = package.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise SystemExit(f"{archive}: holds no {name}; expected the npm package emoji-datasource-google")
    return file.read()


def _cell(pixels: np.ndarray, column: int, row: int) -> np.ndarray:
    left, top = (place * (SIDE + 2 * BORDER) + BORDER for place in (column, row))
    return pixels[top : top + SIDE, left : left + SIDE]


def moved(images: Tensor) -> Tensor:
    """Return images [B, 3, 32, 32] uint8 in [-1, 1], each moved by up to a pixel in both directions."""
    padded = torch.nn.functional.pad(images.float() / 127.5 - 1, (1, 1, 1, 1), value=1.0)
    across, down = torch.randint(0, 3, (2, len(images), 1)) + torch.arange(SIDE)
    index = torch.arange(len(images))[:, None, None]
    return padded[index, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def draw(labels: Tensor, count: int) -> Tensor:
    """Return `count` random indices into labels [N], every class as often as the others."""
    weights = 1 / torch.bincount(labels).clamp(min=1)[labels].float()
    return torch.multinomial(weights, count, replacement=True)
