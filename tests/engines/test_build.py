"""Tests of the engine cache, with real engines of TensorRT for RTX."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from accuquant.engine_manifest import EngineManifest, manifest_path
from accuquant.engines import BuildOptions, Target, build, compile
from accuquant.engines.build import BuiltEngine, build_engine
from accuquant.engines.profile import static_profile
from accuquant.errors import EngineError, UsageError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.trt
MakeConv = Callable[..., Path]


class Messages:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, units: int = 1) -> None: ...

    def message(self, text: str) -> None:
        self.texts.append(text)


def build_small(model: Path, engine: Path, progress: Any = None, **changes: Any) -> BuiltEngine:
    options = BuildOptions(Target(8, 9), backend="tensorrt_rtx", profile=static_profile(model))
    return build_engine(model, engine, options, rebuild="accuquant build OUT", progress=progress, **changes)


def test_an_engine_is_compiled_once(make_conv: MakeConv, tmp_path: Path) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    first = build_small(model, engine)
    again = build_small(model, engine)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifest == first.manifest == EngineManifest.load(engine)
    assert first.manifest.engine_bytes == engine.stat().st_size
    assert not build_small(model, engine, force=True).reused


def test_another_scale_never_finds_the_old_engine(make_conv: MakeConv, tmp_path: Path) -> None:
    engine = tmp_path / "conv.engine"
    old = build_small(make_conv(scale=0.05), engine)
    new = build_small(make_conv(scale=0.06), engine)
    assert not new.reused
    assert new.manifest.key != old.manifest.key
    assert new.manifest.engine_sha256 != old.manifest.engine_sha256


@pytest.mark.parametrize("damage", ["engine", "manifest"])
def test_a_damaged_engine_is_compiled_again_and_it_is_said(
    make_conv: MakeConv, tmp_path: Path, damage: str
) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    first = build_small(model, engine)
    (engine if damage == "engine" else manifest_path(engine)).write_bytes(b"damaged")
    messages = Messages()
    again = build_small(model, engine, messages)
    assert not again.reused
    assert "is not used" in messages.texts[0]
    assert again.manifest.key == first.manifest.key
    again.manifest.check_engine(engine)


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


def test_a_model_that_changes_meanwhile_leaves_no_engine(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"

    def compile_slowly(*args: Any, **options: Any) -> Any:
        compiled = compile.compile_engine(*args, **options)
        make_conv(scale=0.06)
        return compiled

    monkeypatch.setattr(build, "compile_engine", compile_slowly)
    with pytest.raises(EngineError, match="other bytes than when the build began"):
        build_small(model, engine)
    assert not engine.exists()
    assert not manifest_path(engine).exists()


@pytest.mark.parametrize("name", [".", "other.onnx"])
def test_an_engine_does_not_replace_a_folder_or_a_model(
    make_conv: MakeConv, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="--saveEngine"):
        build_small(make_conv(), tmp_path / name)
