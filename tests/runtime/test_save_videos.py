"""Videos as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from accuquant.errors import UsageError
from accuquant.runtime.save_videos import save_videos


def frames_of(path: Path) -> np.ndarray:
    with Image.open(path) as video:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)])


def test_writes_each_video_without_loss_and_a_row_of_its_frames(tmp_path: Path) -> None:
    videos = np.random.default_rng(0).random((2, 3, 4, 6, 3), dtype=np.float32)
    paths = save_videos(videos, tmp_path / "out")
    assert [path.name for path in paths] == ["00000.webp", "00001.webp", "grid.png"]
    expected = (videos * 255).round().astype(np.uint8)  # diffusers' numpy_to_pil
    for video, path in zip(expected, paths, strict=False):
        np.testing.assert_array_equal(frames_of(path), video)
        with Image.open(path) as saved:
            saved.load()
            assert saved.info["duration"] == 50  # 20 frames a second
    with Image.open(paths[-1]) as image:
        grid = np.asarray(image)
    assert grid.shape == (2 * 4, 3 * 6, 3)
    np.testing.assert_array_equal(grid[4:, 6:12], expected[1, 1])


def test_a_long_video_is_shown_from_its_first_to_its_last_frame(tmp_path: Path) -> None:
    video = np.repeat(np.arange(81, dtype=np.uint8), 3).reshape(1, 81, 1, 1, 3)
    with Image.open(save_videos(video, tmp_path)[-1]) as image:
        assert np.asarray(image)[0, :, 0].tolist() == [0, 11, 23, 34, 46, 57, 69, 80]


def test_one_channel_becomes_grey(tmp_path: Path) -> None:
    video = np.arange(16, dtype=np.uint8).reshape(1, 2, 2, 4, 1)
    path, _ = save_videos(video, tmp_path)
    np.testing.assert_array_equal(frames_of(path), video[0].repeat(3, axis=-1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 4, 3), r"got an array of shape \[2, 4, 4, 3\], expected \[N, F, H, W, C\]"),
        ((1, 0, 4, 4, 3), r"at least one video of one frame"),
        ((1, 2, 4, 4, 2), "got 2 channels, expected 1 or 3"),
    ],
)
def test_refuses_arrays_that_are_no_videos(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save_videos(np.zeros(shape, np.float32), tmp_path)
    assert list(tmp_path.iterdir()) == []
