"""Publishing an export; a stand-in for the Hub's client records what it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from snapshot import as_snapshot

from accuquant._util.files import sha256_of_file
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.cli.main import main
from accuquant.errors import EngineError, UsageError
from accuquant.export import write_pipeline
from accuquant.hub.model_card import CARD_NAME, write_model_card
from accuquant.hub.publish import push_folder
from accuquant.hub.published import published_files
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


class FakeApi:
    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def create_commit(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("create_commit", options))
        return SimpleNamespace(commit_url="address of the commit")

    def published(self) -> dict[str, bytes]:
        """Return what the last commit adds, by path."""
        additions = self.calls[-1][1]["operations"]
        return {item.path_in_repo: content_of(item.path_or_fileobj) for item in additions}


def content_of(given: Any) -> bytes:
    return given if isinstance(given, bytes) else Path(given).read_bytes()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    fake.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def test_push_makes_the_repository_and_commits_the_files_of_the_manifest(api: FakeApi, export: Path) -> None:
    assert push_folder(export, "me/model-int8", private=True) == "address of the commit"
    (first, create), (second, upload) = api.calls
    assert (first, second) == ("create_repo", "create_commit")
    assert create == {"repo_id": "me/model-int8", "repo_type": "model", "private": True, "exist_ok": True}
    assert upload["repo_id"] == "me/model-int8"
    assert set(api.published()) == {"accuquant.json", "unet/model.onnx"}
    assert "StableDiffusionPipeline in int8" in upload["commit_message"]


def test_push_refuses_files_that_were_not_exported(api: FakeApi, export: Path) -> None:
    (export / "unet" / "model.onnx").write_bytes(b"another graph")
    with pytest.raises(EngineError, match="other bytes than were exported"):
        push_folder(export, "me/model-int8")
    assert api.calls == []


@pytest.mark.parametrize("repo_id", ["", "/", "me/", "a/b/c"])
def test_push_refuses_what_is_no_repository(api: FakeApi, export: Path, repo_id: str) -> None:
    with pytest.raises(UsageError, match="expected user/name"):
        push_folder(export, repo_id)
    assert api.calls == []


def test_a_refusal_of_the_hub_is_one_line(api: FakeApi, export: Path, monkeypatch: Any) -> None:
    def refuse(self: FakeApi, **_: Any) -> None:
        raise RuntimeError("401 Client Error\nfor url ...")

    monkeypatch.setattr(FakeApi, "create_commit", refuse)
    with pytest.raises(EngineError, match=r"'me/m': got RuntimeError: 401 Client Error, .*hf auth login"):
        push_folder(export, "me/m")


def test_the_command_writes_the_card_and_pushes(
    api: FakeApi,
    export: Path,
    report: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(report()))
    arguments = ["push", str(export), "me/m", "--report", str(tmp_path / "r.json")]
    assert main([*arguments, "--dry-run"]) == 0
    assert api.calls == []
    assert "45.5" in (export / CARD_NAME).read_text()
    assert main([*arguments, "--message", "first"]) == 0
    assert api.calls[1][1]["commit_message"] == "first"
    assert capsys.readouterr().out.endswith("address of the commit\n")


def test_engines_caches_and_what_lies_beside_are_left_out(
    api: FakeApi, export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    strangers = (
        "engines/sm89/tensorrt/model.engine",
        "engines/sm89/tensorrt/model.engine.json",
        "engines/sm89/tensorrt/timing.cache",
        "engines/sm89/tensorrt/model.engine.runtime_cache",
        "holiday.png",
        ".env",
    )
    for name in strangers:
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        (export / name).write_bytes(b"private")
    push_folder(export, "me/m")
    assert set(api.published()) == {"accuquant.json", "unet/model.onnx"}
    listed = {name: sha256_of_file(export / name) for name in ("unet/model.onnx", strangers[0], strangers[2])}
    manifest_of(export, files=listed).save(export)
    push_folder(export, "me/m")
    assert set(api.published()) == {"accuquant.json", "unet/model.onnx"}
    assert list(Manifest.load(export).files) == sorted(listed)  # the folder itself is as it was


@pytest.mark.slow
def test_nothing_that_is_published_names_a_folder_of_this_machine(
    api: FakeApi, tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real export of a pipeline and a LoRA that lie in folders of this machine."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    settings = CalibrationSettings(
        steps=2, group_size=1, num_trajectories=1, iterations=0, shared_iterations=0, refine=False
    )
    recipe = calibrate(tiny_source, settings, output=tmp_path / "recipe.safetensors")
    lora = {"name": str(tmp_path / "style.safetensors"), "scale": 0.5, "sha256": "0" * 64}
    folder = tmp_path / "out"
    write_pipeline(tiny_source, recipe, folder)
    written = Recipe.load(folder / RECIPE_NAME)
    replace(written, calibration={**written.calibration, "loras": [lora]}).save(folder / RECIPE_NAME)
    manifest = Manifest.load(folder)
    files = {**manifest.files, RECIPE_NAME: sha256_of_file(folder / RECIPE_NAME)}
    replace(manifest, files=files).save(folder)
    write_model_card(folder)
    push_folder(folder, "me/m")
    published = api.published()
    assert {"README.md", "accuquant.json", RECIPE_NAME, "unet/model.onnx"} <= set(published)
    private = (str(tmp_path), str(tiny_source.folder), str(Path(torch.__file__).parents[1]))
    for name, content in published.items():
        for path in private:
            assert path.encode() not in content, f"{path} in {name}"
    (tmp_path / "fetched").mkdir()
    for name, content in published.items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    fetched = Manifest.load(tmp_path / "fetched")
    fetched.check_files(tmp_path / "fetched")
    assert fetched.source == ""
    (found,) = Recipe.load(tmp_path / "fetched" / RECIPE_NAME).facts.loras
    assert found.name == "style.safetensors"


def test_a_download_is_not_published_from_the_cache(
    api: FakeApi, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = as_snapshot(export, tmp_path / "hub")
    assert main(["push", str(snapshot), "me/m"]) == 2
    assert "got a download" in capsys.readouterr().err
    assert not (snapshot / CARD_NAME).exists()
    assert api.calls == []


def test_the_folders_of_control_networks_name_no_place_either(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    inside = export / "controlnet"
    inside.mkdir()
    (inside / "model.onnx").write_bytes(b"control")
    own = {"model.onnx": sha256_of_file(inside / "model.onnx")}
    manifest_of(
        export, component="controlnet", graphs=("model.onnx",), files=own, source="/home/ann/sd"
    ).save(inside)
    listed = [export / "unet" / "model.onnx", *inside.iterdir()]
    files = {path.relative_to(export).as_posix(): sha256_of_file(path) for path in listed}
    found = published_files(export, manifest_of(export, files=files, controls=("controlnet",)))
    text = found["controlnet/accuquant.json"]
    assert isinstance(text, bytes)
    assert json.loads(text)["source"] == ""
    whole = found["accuquant.json"]
    assert isinstance(whole, bytes)
    assert json.loads(whole)["files"]["controlnet/accuquant.json"] == hashlib.sha256(text).hexdigest()
    assert found["controlnet/model.onnx"] == inside / "model.onnx"
