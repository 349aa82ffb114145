"""A damaged timing cache is one line with its remedy: TensorRT itself goes on with an empty one."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from accuquant.engines._compiler import load_timing_cache
from accuquant.engines._listening import make_logger
from accuquant.errors import EngineError

trt = pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.trt,
    # TensorRT for RTX still has the calls, which are those of tensorrt, and writes no cache itself.
    pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning"),
]


@pytest.fixture
def listener() -> Any:
    return make_logger(trt, StringIO())


@pytest.fixture
def config(listener: Any) -> Any:
    return trt.Builder(listener).create_builder_config()


@pytest.fixture
def written(config: Any) -> bytes:
    """What TensorRT writes as a cache."""
    return bytes(memoryview(config.create_timing_cache(b"").serialize()))


@pytest.mark.parametrize("damage", ["empty", "one byte less", "half", "random"])
def test_a_damaged_timing_cache_is_refused(
    config: Any, listener: Any, written: bytes, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "timing.cache"
    content = {"empty": b"", "one byte less": written[:-1], "half": written[:80], "random": os.urandom(500)}
    path.write_bytes(content[damage])
    with pytest.raises(EngineError, match=r"timing cache .*Delete it: .*\(rm '.*timing.cache'\)") as caught:
        load_timing_cache(config, str(path), listener)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content[damage]


class Config:
    """A builder's configuration on a GPU, where TensorRT reads what it wrote."""

    def __init__(self, *, same_gpu: bool) -> None:
        self.same_gpu = same_gpu
        self.used: bytes | None = None

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        self.used = cache
        return self.same_gpu or ignore_mismatch


def test_a_whole_cache_is_used_and_that_of_another_gpu_refused(listener: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    here: Any = Config(same_gpu=True)
    load_timing_cache(here, str(path), listener)
    assert here.used is None, "there is none yet"
    path.write_bytes(b"tactics")
    load_timing_cache(here, str(path), listener)
    assert here.used == b"tactics"
    there: Any = Config(same_gpu=False)
    with pytest.raises(EngineError, match="on this GPU"):
        load_timing_cache(there, str(path), listener)
