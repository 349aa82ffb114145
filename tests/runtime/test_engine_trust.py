"""Engines are executable code: those of a download are not run, and not replaced in place either."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import write_engine
from snapshot import as_snapshot

from accuquant._util.gpu import Gpu
from accuquant.engine_manifest import built_root, engine_path
from accuquant.engines.jobs import list_jobs
from accuquant.errors import EngineError
from accuquant.manifest import Manifest
from accuquant.runtime import engine_files
from accuquant.runtime.engine_files import find_engines

ADA = Gpu("RTX 4090", (8, 9), (13, 0))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU, a library, and a cache of our own."""
    monkeypatch.setattr(engine_files, "find_gpu", lambda: ADA)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorrt_rtx")
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add_engine(root: Path, manifest: Manifest) -> Path:
    """Write what passes for an engine of the first graph below `root`."""
    return write_engine(root, manifest.graphs[0], manifest)


@pytest.fixture
def snapshot(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A snapshot that came with an engine."""
    folder = make_folder()
    add_engine(folder, Manifest.load(folder))
    return as_snapshot(folder, tmp_path / "hub")


def test_an_engine_that_came_with_a_download_is_not_run(snapshot: Path) -> None:
    with pytest.raises(EngineError, match=r"downloaded ones, executable code.*accuquant build"):
        find_engines(snapshot, Manifest.load(snapshot))


def test_an_engine_of_a_download_is_run_where_it_is_trusted(snapshot: Path) -> None:
    manifest = Manifest.load(snapshot)
    wanted = engine_path(snapshot, manifest.graphs[0], "sm89", "tensorrt_rtx")
    assert find_engines(snapshot, manifest, trust=True) == (wanted,)


def test_an_engine_that_was_built_here_is_run(snapshot: Path, here: Path) -> None:
    manifest = Manifest.load(snapshot)
    engine = add_engine(built_root(snapshot), manifest)
    assert engine.is_relative_to(here)
    assert find_engines(snapshot, manifest) == (engine,)
    assert find_engines(snapshot, manifest, trust=True) == (engine,)


def test_a_folder_of_our_own_needs_no_trust(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    manifest = Manifest.load(folder)
    engine = add_engine(folder, manifest)
    assert find_engines(folder, manifest) == (engine,)


@pytest.mark.trt
def test_a_build_of_a_snapshot_writes_nothing_into_it(snapshot: Path, here: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    shapes = {"opt_shapes": "sample:1x3x8x8,timestep:1"}
    for source, flags in ((snapshot, {"batch_size": 1}), (snapshot / "unet" / "model.onnx", shapes)):
        (job,) = list_jobs(source, targets="sm89", backend="tensorrt_rtx", **flags)
        assert job.engine.is_relative_to(here)
        assert job.options.timing_cache is not None
        assert job.options.timing_cache.is_relative_to(here)
