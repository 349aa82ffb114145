from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accuquant.errors import UsageError
from accuquant.runtime.save_images import save_images


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_writes_each_image_and_a_grid(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5, 4, 6, 3), dtype=np.float32)
    paths = save_images(images, tmp_path / "out")
    assert [path.name for path in paths] == [*(f"0000{k}.png" for k in range(5)), "grid.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    expected = (images * 255).round().astype(np.uint8)  # diffusers' numpy_to_pil
    for image, path in zip(expected, paths, strict=False):
        np.testing.assert_array_equal(read(path), image)
    grid = read(paths[-1])
    assert grid.shape == (2 * 4, 3 * 6, 3)
    np.testing.assert_array_equal(grid[4:, 6:12], expected[4])
    assert not grid[4:, 12:].any()


def test_writes_one_channel_as_grey(tmp_path: Path) -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    first, grid = save_images(images, tmp_path)
    for path in (first, grid):  # two axes: a grey PNG
        np.testing.assert_array_equal(read(path), images[0, ..., 0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 4), r"expected \[N, H, W, C\]"),
        ((0, 4, 4, 3), r"expected \[N, H, W, C\]"),
        ((1, 4, 4, 2), "got 2 channels, expected 1 or 3"),
        ((1, 4, 4, 4), "got 4 channels, expected 1 or 3"),
    ],
)
def test_refuses_arrays_that_are_no_images(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save_images(np.zeros(shape, np.float32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leaves_nothing_half_written_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_images(np.zeros((1, 4, 4, 1), np.float32), tmp_path)
    assert list(tmp_path.iterdir()) == []
