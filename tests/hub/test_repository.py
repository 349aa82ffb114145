"""Names on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from accuquant.errors import UsageError
from accuquant.hub.repository import Repository


@pytest.mark.parametrize(
    ("text", "revision", "found"),
    [
        ("me/model", None, Repository("me/model")),
        ("me/model@v1.0", None, Repository("me/model", "v1.0")),
        ("me/model", "refs/pr/3", Repository("me/model", "refs/pr/3")),
        ("me/model@abc", "abc", Repository("me/model", "abc")),
        ("./me/model", None, None),
        ("../model", None, None),
        ("me/..", None, None),
        ("/me/model", None, None),
        ("~/model", None, None),
        ("me/my/model", None, None),
        ("model", None, None),
        ("", None, None),
        ("me/mod el", None, None),
    ],
)
def test_ids_are_told_from_paths(text: str, revision: str | None, found: Repository | None) -> None:
    assert Repository.find(text, revision) == found
    if found is not None:
        assert Repository.find(str(found)) == found


def test_a_folder_that_is_here_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Repository.find("me/model") is None


@pytest.mark.parametrize("text", ["me/model@", "me/model@../x", "me/model@a b", "me/model@-x"])
def test_a_revision_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a branch, a tag or a commit"):
        Repository.find(text)


def test_two_revisions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"two revisions, 'v1' and 'v2'"):
        Repository.find("me/model@v1", "v2")
