"""Emoji are cut out of the package's sheet where it says that they are, and put on white."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from emoji_images import CLASSES, Emoji, draw, moved, read_emoji
from PIL import Image

RED, BLUE = (200, 0, 0, 255), (0, 0, 200, 255)


def _archive(path: Path, entries: list[dict[str, object]], sheet: Image.Image) -> Path:
    image = io.BytesIO()
    sheet.save(image, "PNG")
    contents = {"emoji.json": json.dumps(entries).encode(), "img/google/sheets/32.png": image.getvalue()}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_cuts_out_each_skin_tone_and_only_known_classes(tmp_path: Path) -> None:
    sheet = Image.new("RGBA", (2 * 34, 34))  # two cells with a border of a pixel, transparent
    sheet.paste(RED, (1, 1, 33, 33))
    sheet.paste(BLUE, (35, 1, 51, 33))  # the left half of the second
    entries: list[dict[str, object]] = [
        {
            "subcategory": "person",
            "sheet_x": 0,
            "sheet_y": 0,
            "skin_variations": {"1F3FB": {"sheet_x": 1, "sheet_y": 0}},
        },
        {"subcategory": "warning", "sheet_x": 0, "sheet_y": 0},
    ]
    emoji = read_emoji(_archive(tmp_path / "package.tgz", entries, sheet))
    assert emoji.labels.tolist() == [list(CLASSES).index("person")] * 2
    assert emoji.images.shape == (2, 3, 32, 32)
    assert set(map(tuple, emoji.images[0].flatten(1).T.tolist())) == {RED[:3]}
    assert set(map(tuple, emoji.images[1, :, :, :16].flatten(1).T.tolist())) == {BLUE[:3]}
    assert (emoji.images[1, :, :, 16:] == 255).all()


def test_names_the_package_that_an_archive_should_be(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    with pytest.raises(SystemExit, match="expected the npm package emoji-datasource-google"):
        read_emoji(tmp_path / "other.tgz")


def test_labels_follow_the_order_of_the_chosen_classes() -> None:
    labels = torch.tensor([list(CLASSES).index(name) for name in ("face", "heart", "face")])
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 32, 32)
    chosen = Emoji(images, labels).of("heart", "face")
    assert chosen.labels.tolist() == [0, 1, 1]
    assert chosen.images[:, 0, 0, 0].tolist() == [1, 0, 2]


def test_moves_by_a_pixel_at_most_onto_white() -> None:
    torch.manual_seed(0)
    image = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    image[:, 1, 10, 20] = 0  # one dark pixel
    found = (moved(image)[:, 1] < 0).nonzero()
    assert len(found) == 64
    assert (moved(image)[:, (0, 2)] == 1).all()
    assert set(map(tuple, (found[:, 1:] - torch.tensor([10, 20])).tolist())) == {
        (down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)
    }


def test_draws_a_rare_class_as_often_as_the_others() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 10)
    share = (labels[draw(labels, 4000)] == 1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.03)
