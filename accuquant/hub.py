"""The Hub: publish an exported folder, and fetch one by its id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accuquant.errors import EngineError, MissingDependencyError, UsageError
from accuquant.manifest import Manifest

#: Left out of an upload: what other programs put beside an export.
_IGNORED = ["*.partial/*", ".*", "*/.*"]


def push_folder(folder: Path, repo_id: str, *, private: bool = False, message: str = "") -> str:
    """Upload an exported folder to the Hub as `repo_id` and return the address of the commit.

    The files must be those that were exported (their SHA-256 is checked first). The repository is made
    where it does not exist. Raises EngineError where the Hub refuses, MissingDependencyError without
    huggingface_hub.
    """
    _check_id(repo_id)
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    api = _client().HfApi()
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            repo_type="model",
            commit_message=message
            or f"{manifest.pipeline_class} in int8, AccuQuant {manifest.accuquant_version}",
            ignore_patterns=_IGNORED,
        )
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise _refused(
            repo_id, fault, "Log in with `hf auth login`, and check the name and the network"
        ) from fault
    return str(commit)


def local_folder(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of an export: `source` itself, or a snapshot of the Hub repository "user/name".

    Raises EngineError where the Hub has no such repository or cannot be reached.
    """
    path = Path(source)
    text = os.fspath(source)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return path
    try:
        return Path(_client().snapshot_download(text, revision=revision))
    except MissingDependencyError:
        raise
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise _refused(text, fault, "Check the name and the network, or pass an exported folder") from fault


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as fault:
        raise MissingDependencyError(
            "huggingface_hub",
            got="no such package",
            expected="the client of the Hub",
            remedy="pip install huggingface_hub",
        ) from fault
    return huggingface_hub


def _check_id(repo_id: str) -> None:
    if repo_id.count("/") > 1 or not all(repo_id.split("/")):
        raise UsageError(
            f"repository '{repo_id}'",
            got="no Hub id",
            expected="user/name",
            remedy="Give the name of a model repository, for example me/my-model-int8",
        )


def _refused(repo_id: str, fault: Exception, remedy: str) -> EngineError:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return EngineError(
        f"Hub repository '{repo_id}'",
        got=f"{type(fault).__name__}: {lines[0][:200] if lines else ''}",
        expected="a repository that can be reached",
        remedy=remedy,
    )
