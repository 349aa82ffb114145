"""Tests of which engines of a folder fit this machine; they need no library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import write_engine

from accuquant._util.gpu import Gpu
from accuquant.engine_manifest import engine_path
from accuquant.errors import EngineError
from accuquant.manifest import Manifest
from accuquant.runtime import engine_files
from accuquant.runtime.engine_files import find_engines

ADA = Gpu("RTX 4090", (8, 9), (13, 0))


@pytest.fixture
def exported(make_folder: Callable[..., Path]) -> Path:
    """An exported folder with an engine for sm89 that says it was compiled from the folder's graph."""
    folder = make_folder()
    manifest = Manifest.load(folder)
    for graph in manifest.graphs:
        write_engine(folder, graph, manifest)
    return folder


def on(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, *, libraries: tuple[str, ...] = ("tensorrt_rtx",)) -> None:
    """Be on a machine with this GPU, where `libraries` look installed."""
    names = SimpleNamespace(find_spec=lambda name: name if name in libraries else None)
    monkeypatch.setattr(engine_files, "importlib", SimpleNamespace(util=names))
    monkeypatch.setattr(engine_files, "find_gpu", lambda: gpu)


def test_the_engines_for_this_gpu_are_found(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(ADA, monkeypatch)
    manifest = Manifest.load(exported)
    assert find_engines(exported, manifest) == tuple(
        engine_path(exported, graph, "sm89", "tensorrt_rtx") for graph in manifest.graphs
    )


def test_no_engine_for_this_gpu_is_an_error_with_the_command(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Gpu("RTX 3090", (8, 6), (13, 0)), monkeypatch)
    with pytest.raises(EngineError, match=r"engines/sm89/tensorrt_rtx, expected .* sm86.*--target sm86"):
        find_engines(exported, Manifest.load(exported))


def test_an_engine_of_an_earlier_export_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(ADA, monkeypatch)
    path = exported / "accuquant.json"
    data = json.loads(path.read_text())
    data["files"] = dict.fromkeys(data["files"], "1" * 64)
    path.write_text(json.dumps(data))
    with pytest.raises(EngineError, match=r"an engine of another export.*accuquant build OUT"):
        find_engines(exported, Manifest.load(exported))


def test_engines_of_a_library_that_is_not_installed_are_not_taken(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(ADA, monkeypatch, libraries=("tensorrt",))
    with pytest.raises(EngineError, match=r"got engines in engines/sm89/tensorrt_rtx.*--target sm89"):
        find_engines(exported, Manifest.load(exported))


def test_of_two_libraries_with_engines_tensorrt_comes_first(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported / "engines" / "sm89"
    (folder / "tensorrt").mkdir()
    for path in (folder / "tensorrt_rtx").iterdir():
        (folder / "tensorrt" / path.name).write_bytes(path.read_bytes())
    on(ADA, monkeypatch, libraries=("tensorrt", "tensorrt_rtx"))
    assert {path.parent.name for path in find_engines(exported, Manifest.load(exported))} == {"tensorrt"}


def test_a_folder_without_engines_says_how_to_build_them(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(ADA, monkeypatch)
    folder = make_folder()
    with pytest.raises(EngineError, match=r"got no engines, .*accuquant build .*exported --target sm89"):
        find_engines(folder, Manifest.load(folder))
