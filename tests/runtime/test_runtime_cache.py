"""Tests of the runtime cache's file; they need no library."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accuquant.engine_manifest import EngineManifest
from accuquant.errors import EngineError
from accuquant.runtime.runtime_cache import cache_path, load_runtime_cache, save_runtime_cache


class Cache:
    """The two calls of trt.IRuntimeCache, which only an engine on a GPU can make."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, content: bytes) -> bool:
        self.content = bytes(content)
        return True


def test_the_runtime_cache_is_kept_beside_the_engine(engine: Path, manifest: EngineManifest) -> None:
    assert not load_runtime_cache(Cache(), engine, manifest)
    save_runtime_cache(Cache(b"kernels"), engine, manifest)
    found = Cache()
    assert load_runtime_cache(found, engine, manifest)
    assert found.content == b"kernels"


def test_the_runtime_cache_of_another_engine_is_left_alone(engine: Path, manifest: EngineManifest) -> None:
    save_runtime_cache(Cache(b"kernels"), engine, manifest)
    found = Cache()
    assert not load_runtime_cache(found, engine, replace(manifest, engine_sha256="0" * 64))
    assert found.content == b""
    assert load_runtime_cache(found, engine, manifest), "it is a whole cache, of this engine"


@pytest.mark.parametrize("damage", ["empty", "header alone", "one byte less", "one byte other", "random"])
def test_a_damaged_runtime_cache_is_refused(engine: Path, manifest: EngineManifest, damage: str) -> None:
    save_runtime_cache(Cache(b"kernels"), engine, manifest)
    whole = cache_path(engine).read_bytes()
    content = {
        "empty": b"",
        "header alone": whole[:40],
        "one byte less": whole[:-1],
        "one byte other": whole[:-1] + b"S",
        "random": np.random.default_rng(0).bytes(500),
    }[damage]
    cache_path(engine).write_bytes(content)
    never_filled = Cache()
    with pytest.raises(EngineError, match=r"damaged file.*Delete it: .*\(rm '.*runtime_cache'\)") as caught:
        load_runtime_cache(never_filled, engine, manifest)
    assert "\n" not in str(caught.value)
    assert never_filled.content == b"", "it is executable code"


def test_a_full_disk_leaves_the_old_runtime_cache(
    engine: Path, manifest: EngineManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_runtime_cache(Cache(b"old"), engine, manifest)
    kept = cache_path(engine).read_bytes()

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_runtime_cache(Cache(b"new"), engine, manifest)
    assert cache_path(engine).read_bytes() == kept
    assert [path for path in engine.parent.iterdir() if path.name.startswith(f".{engine.name}.run")] == []
