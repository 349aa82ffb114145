"""Publishing and fetching an export; a stand-in for the Hub's client records what it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from accuquant._files import sha256_of_file
from accuquant.cli.main import main
from accuquant.errors import EngineError, UsageError
from accuquant.groups import StepGroups
from accuquant.hub import local_folder, push_folder
from accuquant.manifest import Manifest
from accuquant.model_card import CARD_NAME, model_card, write_model_card
from accuquant.signature import Signature, TensorSpec

IMAGE = TensorSpec("sample", ("batch", 4, "height", "width"))


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "pipeline_class": "StableDiffusionPipeline",
        "component": "unet",
        "lowering": "rescale",
        "precision": "fp32",
        "opset": 21,
        "graphs": ("unet/model.onnx",),
        "groups": StepGroups((1000, 500, 0)),
        "signature": Signature(
            "UNet2DConditionModel",
            IMAGE,
            TensorSpec("timestep", ("steps",)),
            (),
            IMAGE,
            {"batch": 1, "steps": 1, "height": 64, "width": 64},
        ),
        "model_hash": "0" * 64,
        "num_inference_steps": 50,
        "accuquant_version": "0.1.0",
        "source": "owner/model",
        "files": {"unet/model.onnx": sha256_of_file(folder / "unet" / "model.onnx")},
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_bytes(b"graph")
    manifest_of(folder).save(folder)
    return folder


class FakeApi:
    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> str:
        self.calls.append(("upload_folder", options))
        return "address of the commit"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    fake.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def test_push_makes_the_repository_and_uploads_the_folder(api: FakeApi, export: Path) -> None:
    assert push_folder(export, "me/model-int8", private=True) == "address of the commit"
    (first, create), (second, upload) = api.calls
    assert (first, second) == ("create_repo", "upload_folder")
    assert create == {"repo_id": "me/model-int8", "repo_type": "model", "private": True, "exist_ok": True}
    assert upload["repo_id"] == "me/model-int8"
    assert upload["folder_path"] == str(export)
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


def test_a_refusal_of_the_hub_is_one_line(api: FakeApi, export: Path, monkeypatch: Any) -> None:
    def refuse(self: FakeApi, **_: Any) -> None:
        raise RuntimeError("401 Client Error\nfor url ...")

    monkeypatch.setattr(FakeApi, "upload_folder", refuse)
    with pytest.raises(EngineError, match=r"'me/m': got RuntimeError: 401 Client Error, .*hf auth login"):
        push_folder(export, "me/m")


def test_a_hub_id_becomes_a_snapshot_and_a_path_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(repo_id: str, revision: str | None = None) -> str:
        asked.append((repo_id, revision))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_folder("me/model-int8", revision="v1") == tmp_path / "snapshot"
    assert asked == [("me/model-int8", "v1")]
    for path in (tmp_path, "./none/model", "/none", "none", "a/b/c"):
        assert local_folder(path) == Path(path)
    assert len(asked) == 1


def test_an_id_that_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, revision: str | None = None) -> str:
        raise OSError("404 Not Found\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(EngineError, match=r"Hub repository 'me/none': got OSError: 404 Not Found,"):
        local_folder("me/none")


def report(**changes: Any) -> dict[str, Any]:
    numbers = {"median": 45.52, "mean": 43.6, "minimum": 21.4, "maximum": 60.0}
    return {
        "schema_version": 1,
        "passed": True,
        "checks": [],
        "settings": {"num_images": 48, "steps": 50, "engine": "openvino"},
        "fidelity": {"summary": {"psnr": numbers, "ssim": {**numbers, "mean": None}}},
        "fid2fp32": {"extractor": "fashion", "engine": 0.061, "simulated": 0.05},
        "placement": {"int8_mac_share": 0.959},
        "sizes": {"fp32_weights": 10_900_000, "engine_files": 3_800_000},
        "latencies": [{"name": "OpenVINO int8", "median_ms": 35.04}],
        **changes,
    }


def test_the_card_has_the_figures_of_the_report(export: Path) -> None:
    card = model_card(Manifest.load(export), report())
    for text in (
        "base_model: owner/model",
        "library_name: diffusers",
        "48 seeds, 50 steps, openvino); the verification passed",
        "| PSNR against FP32, median (mean, minimum) | 45.5 (43.6, 21.4) dB |",
        "| SSIM, median (mean, minimum) | 45.520 (not finite, 21.400) |",
        "| FID2FP32 (fashion features) | 0.061 |",
        "| multiply-accumulates in int8 | 95.9% |",
        "| weights on disk | 10.9 MB -> 3.8 MB |",
        "| one call, OpenVINO int8 | 35.0 ms |",
        'DiffusionPipeline.from_pretrained("owner/model")',
        "2 step groups, lowering rescale",
    ):
        assert text in card
    assert "**failed**" in model_card(Manifest.load(export), report(passed=False))


def test_the_hub_reads_the_card(export: Path) -> None:
    card = huggingface_hub.ModelCard(model_card(Manifest.load(export), report()))
    assert card.data.base_model == "owner/model"
    assert card.data.library_name == "diffusers"
    assert "int8" in card.data.tags


def test_a_card_of_a_local_pipeline_names_no_base_model_and_nothing_measured(export: Path) -> None:
    card = model_card(manifest_of(export, source="/home/me/models/my-ddpm"), None)
    assert "base_model" not in card
    assert "# my-ddpm, int8" in card
    assert "Nothing yet" in card


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 2, "checks": []}'])
def test_a_file_that_is_no_report_is_refused(export: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError, match=r"report '.*r\.json'.*accuquant verify --json"):
        write_model_card(export, tmp_path / "r.json")
    assert not (export / CARD_NAME).exists()


def test_the_command_writes_the_card_and_pushes(
    api: FakeApi, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(report()))
    arguments = ["push", str(export), "me/m", "--report", str(tmp_path / "r.json")]
    assert main([*arguments, "--dry-run"]) == 0
    assert api.calls == []
    assert "45.5" in (export / CARD_NAME).read_text()
    assert main([*arguments, "--message", "first"]) == 0
    assert api.calls[1][1]["commit_message"] == "first"
    assert capsys.readouterr().out.endswith("address of the commit\n")
