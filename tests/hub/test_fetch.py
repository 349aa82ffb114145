"""Fetching an export and a pipeline with the real client, from a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hub_server import HubServer, serve
from onnx import TensorProto, helper, numpy_helper
from snapshot import as_snapshot

from accuquant._util.files import sha256_of_file
from accuquant._util.real_model import real_model
from accuquant.cli.main import main
from accuquant.errors import EngineError
from accuquant.hub.fetch import local_folder
from accuquant.manifest import Manifest
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.engine_unet import EngineUNet

FETCH = "import sys; from accuquant.hub.fetch import local_folder; print(local_folder(sys.argv[1]))"
SOURCE = "import sys; from accuquant.pipelines import source; print(source.folder_of_pipeline(sys.argv[1]))"
#: What somebody put into a repository beside an export, and what a client must leave there.
STRANGERS = ("engines/sm89/tensorrt/model.engine", "unet/model.bin", "setup.py", "pickle.pkl", "README.md")


@pytest.fixture(autouse=True)
def our_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own for each test."""
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "ours"))
    return tmp_path / "ours"


@pytest.fixture
def whole_export(tmp_path: Path, manifest_of: Callable[..., Manifest]) -> Path:
    """An export whose weights are in a file of their own, with strangers beside it."""
    folder = tmp_path / "export"
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    image: list[str | int | None] = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["sample", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "timestep"], ["out_sample"]),
        ],
        "unet",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("timestep", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(np.full((4, 1, 1), 0.5, np.float32), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model,
        folder / "unet" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    (folder / "unet" / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4})
    )
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    (folder / "merges.txt").write_text("a b\n")
    names = ("unet/model.onnx", "unet/model.onnx.data")
    manifest_of(folder, files={name: sha256_of_file(folder / name) for name in names}).save(folder)
    for name in STRANGERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"code")
    return folder


def run_client(code: str, name: str, hub: HubServer, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own: the client reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, **hub.environment(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def predict(folder: Path, **options: Any) -> np.ndarray:
    with EngineModel.from_folder(folder, "openvino", **options) as model:
        return model(np.ones((1, 4, 8, 8), np.float32), 300)


def test_the_real_client_fetches_data_alone_and_what_it_leaves_is_loaded(
    whole_export: Path, tmp_path: Path
) -> None:
    with serve({"me/model": {"main": whole_export}}) as hub:
        done = run_client(FETCH, "me/model", hub, tmp_path / "home")
        assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert (snapshot / "unet" / "model.onnx").is_symlink()
    found = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert not found & set(STRANGERS)
    assert {"accuquant.json", "unet/model.onnx.data", "merges.txt"} <= found
    np.testing.assert_allclose(predict(snapshot), 300.5)


def test_a_revision_is_pinned(whole_export: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "accuquant.json").write_text("{}")
    with serve({"me/model": {"main": whole_export, "v1": older}}) as hub:
        commit = hub.commit("me/model", "v1")
        for revision in ("v1", commit):
            done = run_client(FETCH, f"me/model@{revision}", hub, tmp_path / "home")
            assert Path(done.stdout.strip()).name == commit, done.stderr


def test_the_command_line_takes_a_repository_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with serve({"me/model": {"main": empty}}) as hub:
        for name, message in (
            ("me/model", "got no accuquant.json"),
            ("me/none", "Hub repository 'me/none': got"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "accuquant", "sample", name],
                env={**os.environ, **hub.environment(tmp_path / "home")},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 1
            assert message in done.stderr


@pytest.mark.slow
def test_the_real_client_fetches_a_pipeline_and_no_pickle(tiny_pipeline: Path, tmp_path: Path) -> None:
    import shutil

    pipeline = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    for name in ("unet/diffusion_pytorch_model.bin", "unet/code.py", "whole.safetensors"):
        (pipeline / name).write_bytes(b"code")
    with serve({"me/ddpm": {"main": pipeline, "v2": pipeline}}) as hub:
        done = run_client(SOURCE, "me/ddpm@v2", hub, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip().splitlines()[-1])
        assert folder.name == hub.commit("me/ddpm", "v2")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in found
    assert not [name for name in found if name.endswith((".bin", ".py"))]
    from accuquant.pipelines.source import load_source

    assert load_source(folder).component == "unet"


def test_a_snapshot_runs_in_every_engine(whole_export: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(whole_export, tmp_path / "hub")
    np.testing.assert_allclose(predict(snapshot), 300.5)
    with EngineModel.from_folder(snapshot, "onnxruntime") as model:
        np.testing.assert_allclose(model(np.ones((1, 4, 8, 8), np.float32), 300), 300.5)
    assert EngineUNet.from_pretrained(snapshot).config.sample_size == 8


def test_the_commands_that_read_graphs_take_a_snapshot(
    whole_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = as_snapshot(whole_export, tmp_path / "hub")
    before = sorted(path.as_posix() for path in snapshot.rglob("*"))
    model = snapshot / "unet" / "model.onnx"
    assert main(["check", str(model), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["rule"] == "not-quantized"
    assert main(["bench", str(snapshot), "--rounds", "2", "--json", "-"]) == 0
    names = {result["name"] for result in json.loads(capsys.readouterr().out)["results"]}
    assert "openvino int8" in names
    assert sorted(path.as_posix() for path in snapshot.rglob("*")) == before


def test_weights_behind_links_become_regular_files_once(
    whole_export: Path, tmp_path: Path, our_cache: Path
) -> None:
    model = as_snapshot(whole_export, tmp_path / "hub") / "unet" / "model.onnx"
    real = real_model(model)
    assert real.is_relative_to(our_cache)
    for path in real.parent.iterdir():
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1  # onnx takes several names of a file for an attack
        assert path.read_bytes() == (model.parent / path.name).read_bytes()
    assert real_model(model) == real
    assert [path.name for path in (our_cache / "models").iterdir()] == [real.parent.name]
    assert real_model(whole_export / "unet" / "model.onnx") == whole_export / "unet" / "model.onnx"


def test_weights_behind_links_are_copied_where_the_kernel_cannot(
    whole_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError("another disk")

    snapshot = as_snapshot(whole_export, tmp_path / "hub")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    np.testing.assert_allclose(predict(snapshot), 300.5)


def test_a_snapshot_whose_data_leads_out_of_it_is_refused(whole_export: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(whole_export, tmp_path / "hub")
    data = snapshot / "unet" / "model.onnx.data"
    data.unlink()
    (tmp_path / "private").write_bytes((whole_export / "unet" / "model.onnx.data").read_bytes())
    data.symlink_to(tmp_path / "private")
    with pytest.raises(EngineError, match=r"'model\.onnx\.data', which points outside the folder"):
        predict(snapshot)


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    for path in (tmp_path, "./none/model", "/none", "none", "a/b/c"):
        assert local_folder(path) == Path(path)


def test_an_id_that_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(repo_id: str, **_: Any) -> str:
        raise OSError("404 Not Found\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(EngineError, match=r"Hub repository 'me/none': got OSError: 404 Not Found,"):
        local_folder("me/none")
