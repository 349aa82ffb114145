"""Tests of which engines are compiled again, with a stand-in for the compiler that needs no library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accuquant._util.gpu import Gpu
from accuquant._util.scratch import remove_abandoned, scratch_beside
from accuquant.engine_manifest import EngineManifest, manifest_path
from accuquant.engines import BuildOptions, CompiledEngine, Target, build
from accuquant.engines.backend import Backend
from accuquant.engines.build import BuiltEngine, build_engine
from accuquant.engines.profile import static_profile
from accuquant.errors import EngineError, UsageError

pytestmark = pytest.mark.usefixtures("rtx_by_name")
MakeConv = Callable[..., Path]


class Messages:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, units: int = 1) -> None: ...

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let an engine be the digest of its model -> the names of the models that were compiled, in order."""
    names: list[str] = []

    def compile_engine(model: Path, plan: Path, options: BuildOptions, **_: Any) -> CompiledEngine:
        names.append(model.name)
        plan.write_bytes(hashlib.sha256(model.read_bytes()).digest())
        return CompiledEngine(plan, ("INFO: done",), 0.25, "tensorrt_rtx", "1.7.1")

    monkeypatch.setattr(build, "compile_engine", compile_engine)
    return names


def build_small(model: Path, engine: Path, progress: Any = None, **changes: Any) -> BuiltEngine:
    profile = static_profile(model)
    fields: dict[str, Any] = {"target": Target(8, 9), "backend": "tensorrt_rtx", "profile": profile}
    options = BuildOptions(**(fields | changes))
    return build_engine(model, engine, options, rebuild="accuquant build OUT", progress=progress)


def test_an_engine_is_kept_until_something_that_it_depends_on_changes(
    make_conv: MakeConv, tmp_path: Path, compiled: list[str]
) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    first = build_small(model, engine)
    assert not first.reused
    assert first.manifest == EngineManifest.load(engine)
    assert (first.manifest.library, first.manifest.version, first.manifest.target) == (
        "tensorrt_rtx", "1.7.1", "sm89",
    )  # fmt: skip
    assert (first.manifest.engine_bytes, first.manifest.seconds) == (32, 0.25)
    again = build_small(model, engine)
    assert again.reused
    assert again.manifest == first.manifest
    assert compiled == ["conv.onnx"]
    for changes in (
        {"refit": True},
        {"target": Target(8, 6)},
        {"profile": static_profile(model, batch_size=2)},
    ):
        other = build_small(model, engine, **changes)
        assert not other.reused
        assert other.manifest.key != first.manifest.key
    assert not build_small(make_conv(scale=0.06), engine).reused
    assert len(compiled) == 5


def test_a_kept_engine_is_swept_around_too(make_conv: MakeConv, tmp_path: Path) -> None:
    model, engine = make_conv(), tmp_path / "engines" / "conv.engine"
    engine.parent.mkdir()
    build_small(model, engine)
    with scratch_beside(engine) as folder:
        left = folder.with_name(folder.name.replace("conv", "dead"))
    left.mkdir()
    remove_abandoned.cache_clear()
    assert build_small(model, engine).reused
    assert not left.exists()


def test_force_compiles_what_is_there(make_conv: MakeConv, tmp_path: Path, compiled: list[str]) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    options = BuildOptions(Target(8, 9), backend="tensorrt_rtx", profile=static_profile(model))
    build_engine(model, engine, options, rebuild="accuquant build OUT")
    assert not build_engine(model, engine, options, rebuild="accuquant build OUT", force=True).reused
    assert len(compiled) == 2


def test_another_version_of_the_library_compiles_again(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"
    build_small(model, engine)
    monkeypatch.setattr(build, "resolve_backend", lambda _: Backend("tensorrt_rtx", "1.8.0"))
    build_small(model, engine)
    assert len(compiled) == 2


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


def test_a_model_that_changes_meanwhile_leaves_no_engine(
    make_conv: MakeConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = make_conv(), tmp_path / "conv.engine"

    whole: Callable[..., Any] = vars(build)["compile_engine"]  # what the fixture put there

    def compile_slowly(*args: Any, **options: Any) -> Any:
        compiled = whole(*args, **options)
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


@pytest.mark.parametrize("capability", [(8, 9), (8, 6)])
def test_a_library_that_measures_compiles_for_the_gpu_of_this_machine_alone(
    make_conv: MakeConv,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled: list[str],
    capability: tuple[int, int],
) -> None:
    monkeypatch.setattr(build, "resolve_backend", lambda _: Backend("tensorrt", "11.0"))
    monkeypatch.setattr(build, "find_gpu", lambda: Gpu("some", capability, (13, 0)))
    model, engine = make_conv(), tmp_path / "conv.engine"
    if capability == (8, 9):
        assert not build_small(model, engine, backend="tensorrt").reused
        return
    with pytest.raises(UsageError, match=r"target sm89: .*\(some, sm86\).*--backend tensorrt_rtx"):
        build_small(model, engine, backend="tensorrt")
    assert compiled == []
