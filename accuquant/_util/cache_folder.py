"""Where AccuQuant keeps what can be made again: beside nobody's files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ACCUQUANT_CACHE, else accuquant in XDG_CACHE_HOME, else ~/.cache/accuquant."""
    ours, shared = os.environ.get("ACCUQUANT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if ours:
        return Path(ours)
    return (Path(shared) if shared else Path.home() / ".cache") / "accuquant"
