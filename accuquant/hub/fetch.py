"""Find the folder of an exported pipeline, on this machine or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from accuquant.errors import MissingDependencyError

from .client import client, refused
from .repository import Repository

#: What an export and its tokenizers consist of: data alone. Engines are executable code, and are built here.
PATTERNS = (
    "*.json",
    "*.onnx",
    "*.data",
    "*.onnx_data",
    "*.safetensors",
    "*.txt",  # vocabularies and merges
    "*.model",  # sentencepiece
)


def local_folder(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of an export: `source` itself, or a snapshot of the Hub repository "user/name".

    "user/name@revision" or `revision` pin what is fetched. Raises EngineError where the Hub has no such
    repository or cannot be reached.
    """
    repository = Repository.find(os.fspath(source), revision)
    if repository is None:
        return Path(source)
    try:
        return Path(
            client().snapshot_download(
                repository.id, revision=repository.revision, allow_patterns=list(PATTERNS)
            )
        )
    except MissingDependencyError:
        raise
    except Exception as fault:  # the Hub client raises many unrelated kinds
        remedy = "Check the name and the network, or pass an exported folder"
        raise refused(os.fspath(source), fault, remedy) from fault
