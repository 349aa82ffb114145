"""Find the folder of an exported pipeline, on this machine or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from accuquant.errors import MissingDependencyError

from .client import client, refused


def local_folder(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of an export: `source` itself, or a snapshot of the Hub repository "user/name".

    Raises EngineError where the Hub has no such repository or cannot be reached.
    """
    path = Path(source)
    text = os.fspath(source)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return path
    try:
        return Path(client().snapshot_download(text, revision=revision))
    except MissingDependencyError:
        raise
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise refused(text, fault, "Check the name and the network, or pass an exported folder") from fault
