"""Publish an exported folder on the Hub."""

from __future__ import annotations

from pathlib import Path

from accuquant._util.named_file import is_downloaded
from accuquant.errors import UsageError
from accuquant.manifest import Manifest

from .client import client, refused
from .model_card import CARD_NAME
from .published import published_files


def push_folder(folder: Path, repo_id: str, *, private: bool = False, message: str = "") -> str:
    """Upload an exported folder to the Hub as `repo_id` and return the address of the commit.

    The files must be those that were exported (their SHA-256 is checked first). Nothing but them is
    published, with the model card: no engine, no cache, and no path of this machine. The repository is made
    where it does not exist. Raises EngineError where the Hub refuses, MissingDependencyError without
    huggingface_hub.
    """
    _check_id(repo_id)
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    files = published_files(folder, manifest)
    if (folder / CARD_NAME).is_file():
        files[CARD_NAME] = folder / CARD_NAME
    hub = client()
    api = hub.HfApi()
    additions = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()
    ]
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id=repo_id,
            repo_type="model",
            operations=additions,
            commit_message=message
            or f"{manifest.pipeline_class} in int8, AccuQuant {manifest.accuquant_version}",
        )
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise refused(
            repo_id, fault, "Log in with `hf auth login`, and check the name and the network"
        ) from fault
    return str(commit.commit_url)


def check_own(folder: Path) -> None:
    """Raise UsageError for a folder that was downloaded: nothing is written into the Hub's cache."""
    if is_downloaded(folder):
        raise UsageError(
            f"folder '{folder}'",
            got="a download",
            expected="a folder that `accuquant export` wrote",
            remedy="Publish the export where it was made",
        )


def _check_id(repo_id: str) -> None:
    if repo_id.count("/") > 1 or not all(repo_id.split("/")):
        raise UsageError(
            f"repository '{repo_id}'",
            got="no Hub id",
            expected="user/name",
            remedy="Give the name of a model repository, for example me/my-model-int8",
        )
