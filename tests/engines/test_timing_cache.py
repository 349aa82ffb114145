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

REFUSAL = r"timing cache .*Delete it: .*\(rm '.*timing.cache'\)"


# TensorRT for RTX still has the calls, which are those of tensorrt, and writes no cache itself.
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
@pytest.mark.trt
@pytest.mark.parametrize("damage", ["empty", "one byte less", "half", "random"])
def test_a_damaged_timing_cache_is_refused(tmp_path: Path, damage: str) -> None:
    import tensorrt_rtx as trt

    path, listener = tmp_path / "timing.cache", make_logger(trt, StringIO())
    config = trt.Builder(listener).create_builder_config()
    written = bytes(memoryview(config.create_timing_cache(b"").serialize()))
    content = {"empty": b"", "one byte less": written[:-1], "half": written[:80], "random": os.urandom(500)}
    path.write_bytes(content[damage])
    with pytest.raises(EngineError, match=REFUSAL) as caught:
        load_timing_cache(config, str(path), listener)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content[damage]


class Listener:
    """A logger that heard something before."""

    def __init__(self) -> None:
        self.warnings = ["the timing cache of an earlier build"]


class Config:
    """A builder's configuration on a GPU, where TensorRT reads what it wrote."""

    def __init__(self, listener: Listener, *, same_gpu: bool = True, warning: str = "") -> None:
        self.listener, self.same_gpu, self.warning = listener, same_gpu, warning
        self.used: bytes | None = None

    def create_timing_cache(self, data: bytes) -> bytes:
        self.listener.warnings += filter(None, [self.warning])
        return data

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        self.used = cache
        return self.same_gpu or ignore_mismatch


def test_a_whole_cache_is_used_and_that_of_another_gpu_refused(tmp_path: Path) -> None:
    path, listener = tmp_path / "timing.cache", Listener()
    here: Any = Config(listener)
    load_timing_cache(here, str(path), listener)
    assert here.used is None, "there is none yet"
    path.write_bytes(b"tactics")
    load_timing_cache(here, str(path), listener)
    assert here.used == b"tactics"
    there: Any = Config(listener, same_gpu=False)
    with pytest.raises(EngineError, match="on this GPU"):
        load_timing_cache(there, str(path), listener)


def test_a_cache_of_which_tensorrt_only_warns_is_refused(tmp_path: Path) -> None:
    path, listener = tmp_path / "timing.cache", Listener()
    path.write_bytes(b"tactics")
    config: Any = Config(listener, warning="Skipping the Timing Cache: its version does not match")
    with pytest.raises(EngineError, match=REFUSAL):
        load_timing_cache(config, str(path), listener)
    assert config.used is None
    silent: Any = Config(listener, warning="another subject")
    load_timing_cache(silent, str(path), listener)
    assert silent.used == b"tactics"


def test_an_empty_cache_is_refused_before_tensorrt_takes_it(tmp_path: Path) -> None:
    path, listener = tmp_path / "timing.cache", Listener()
    path.touch()
    config: Any = Config(listener)
    with pytest.raises(EngineError, match="an empty file"):
        load_timing_cache(config, str(path), listener)
    assert config.used is None
