"""Publishing an export; a stand-in for the Hub's client records what it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from accuquant.cli.main import main
from accuquant.errors import EngineError, UsageError
from accuquant.hub.model_card import CARD_NAME
from accuquant.hub.publish import push_folder


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
    assert api.calls == []


def test_a_refusal_of_the_hub_is_one_line(api: FakeApi, export: Path, monkeypatch: Any) -> None:
    def refuse(self: FakeApi, **_: Any) -> None:
        raise RuntimeError("401 Client Error\nfor url ...")

    monkeypatch.setattr(FakeApi, "upload_folder", refuse)
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
