"""Publish an exported folder on the Hub."""

from __future__ import annotations

from pathlib import Path

from accuquant.errors import UsageError
from accuquant.manifest import Manifest

from .client import client, refused

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
    api = client().HfApi()
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
        raise refused(
            repo_id, fault, "Log in with `hf auth login`, and check the name and the network"
        ) from fault
    return str(commit)


def _check_id(repo_id: str) -> None:
    if repo_id.count("/") > 1 or not all(repo_id.split("/")):
        raise UsageError(
            f"repository '{repo_id}'",
            got="no Hub id",
            expected="user/name",
            remedy="Give the name of a model repository, for example me/my-model-int8",
        )
