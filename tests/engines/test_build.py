"""Tests of the engine cache, with real engines of TensorRT for RTX."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accuquant.engine_manifest import EngineManifest
from accuquant.engines import BuildOptions, Target, compile
from accuquant.engines.build import BuiltEngine, build_engine
from accuquant.engines.profile import static_profile

pytestmark = pytest.mark.trt
MakeConv = Callable[..., Path]


def build_small(model: Path, engine: Path) -> BuiltEngine:
    options = BuildOptions(Target(8, 9), backend="tensorrt_rtx", profile=static_profile(model))
    return build_engine(model, engine, options, rebuild="accuquant build OUT")


def test_an_engine_is_compiled_once(make_conv: MakeConv, tmp_path: Path) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    first = build_small(model, engine)
    again = build_small(model, engine)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifest == first.manifest == EngineManifest.load(engine)
    assert first.manifest.engine_bytes == engine.stat().st_size


def test_another_scale_never_finds_the_old_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    engine = tmp_path / "conv.engine"
    old = build_small(make_conv(scale=0.05), engine)
    new = build_small(make_conv(scale=0.06), engine)
    assert not new.reused
    assert new.manifest.key != old.manifest.key
    assert new.manifest.engine_sha256 != old.manifest.engine_sha256


def test_a_full_disk_leaves_the_old_engine(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "conv.engine"
    old = build_small(make_conv(), engine)

    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(compile, "atomic_write", on_a_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        build_small(make_conv(scale=0.06), engine)
    assert caught.value.errno == errno.ENOSPC
    old.manifest.check_engine(engine)


BUILD = """
import sys
from pathlib import Path
from accuquant.engines import BuildOptions, Target
from accuquant.engines.build import build_engine
from accuquant.engines.profile import static_profile
model, engine = map(Path, sys.argv[1:])
options = BuildOptions(Target(8, 9), backend="tensorrt_rtx", profile=static_profile(model))
print(build_engine(model, engine, options, rebuild="accuquant build OUT").reused)
"""


def test_two_processes_that_build_at_once_compile_once(make_conv: MakeConv, tmp_path: Path) -> None:
    engine = tmp_path / "conv.engine"
    command = [sys.executable, "-c", BUILD, str(make_conv()), str(engine)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate()[0].strip() for process in both)
    assert answers == ["False", "True"]
    EngineManifest.load(engine).check_engine(engine)
