"""Fetching an export; a stand-in for the Hub's client records what it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from accuquant.errors import EngineError
from accuquant.hub.fetch import local_folder


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
