"""The Hugging Face cache's layout, made by hand: what a client leaves of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from accuquant._util.files import sha256_of_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_snapshot(folder: Path, cache: Path, repository: str = "me/model") -> Path:
    """Copy `folder` into `cache` as huggingface_hub does, and return the snapshot: links into blobs."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = root / "blobs" / sha256_of_file(path)
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
