from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from accuquant.errors import UsageError, VerificationError
from accuquant.evaluation.real_images import RealImages
from accuquant.verification.measure.feature_networks import FEATURES, SPATIAL


def pixels(count: int, side: int = 6) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_adm_batch_is_read_image_by_image(save: Any, tmp_path: Path) -> None:
    images, path = pixels(7), tmp_path / "batch.npz"
    save(path, arr_0=images, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=np.eye(2))
    real = RealImages.open(path)
    assert real.count == 7
    assert real.statistics[FEATURES].mean.tolist() == [0, 0, 0]
    assert real.statistics[SPATIAL].mean.tolist() == [1, 1]
    batches = list(real.batches(range(2, 7), 2, gray=False))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    wanted = torch.from_numpy(images[2:7]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.cat(batches), wanted)


def test_clean_fid_statistics_hold_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.arange(3.0), sigma=np.eye(3))
    real = RealImages.open(tmp_path / "s.npz")
    assert (real.count, list(real.statistics)) == (0, [FEATURES])


def test_images_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Each size makes a batch of its own; folders in the folder are classes."""
    (tmp_path / "dogs").mkdir()
    for name, side in (("a.png", 6), ("dogs/c.png", 6), ("b.png", 5)):
        Image.fromarray(pixels(1, side)[0]).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no image")
    real = RealImages.open(tmp_path)
    shapes = [tuple(batch.shape) for batch in real.batches(range(real.count), 4, gray=True)]
    assert shapes == [(1, 1, 6, 6), (1, 1, 5, 5), (1, 1, 6, 6)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, r"got an .npz with x, expected mu and sigma \(clean-fid\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got mu \[3\] and sigma \[4, 4\]"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"got arr_0 \[2, 3, 8, 8\] of uint8"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, r"got arr_0 \[2, 8, 8, 3\] of float32"),
    ],
)
def test_other_archives_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        RealImages.open(tmp_path / "x.npz")


def test_what_is_no_archive_and_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"--real '.*x.npz': got File is not a zip file"):
        RealImages.open(tmp_path / "x.npz")
    with pytest.raises(UsageError, match="got no image"):
        RealImages.open(tmp_path)
    (tmp_path / "x.png").write_bytes(b"no png")
    with pytest.raises(VerificationError, match=r"real image '.*x.png'"):
        list(RealImages.open(tmp_path).batches(range(1), 1, gray=False))
