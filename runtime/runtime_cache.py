"""The runtime cache of TensorRT for RTX: kernels finished on this machine, kept beside the engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from accuquant._util.files import atomic_write
from accuquant.engine_manifest import EngineManifest
from accuquant.errors import EngineError

_DIGEST_BYTES = 32


def cache_path(engine: Path) -> Path:
    """Return where the cache of `engine` is kept."""
    return engine.with_name(f"{engine.name}.runtime_cache")


def load_runtime_cache(cache: Any, engine: Path, manifest: EngineManifest) -> bool:
    """Fill an empty trt.IRuntimeCache from the file -> whether it was filled.

    The file is the SHA-256 of the engine, the SHA-256 of the rest, and the rest. That of another engine,
    GPU or driver is left alone and overwritten later. Raises EngineError for a damaged file: its content is
    executable code.
    """
    path = cache_path(engine)
    if not path.is_file():
        return False
    data = path.read_bytes()
    owner, digest, content = (
        data[:_DIGEST_BYTES],
        data[_DIGEST_BYTES : 2 * _DIGEST_BYTES],
        data[2 * _DIGEST_BYTES :],
    )
    if hashlib.sha256(content).digest() != digest:
        raise EngineError(
            f"runtime cache '{path}'",
            got="a damaged file",
            expected="what an earlier run wrote",
            remedy=f"Delete it: the next run writes it anew (rm '{path}')",
        )
    if owner != bytes.fromhex(manifest.engine_sha256):
        return False
    return bool(cache.deserialize(content))


def save_runtime_cache(cache: Any, engine: Path, manifest: EngineManifest) -> None:
    """Write the content of a trt.IRuntimeCache beside `engine`, atomically, where it is new."""
    content = bytes(cache.serialize())
    header = bytes.fromhex(manifest.engine_sha256) + hashlib.sha256(content).digest()
    path = cache_path(engine)
    if path.is_file() and path.read_bytes() == header + content:
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(header + content)
