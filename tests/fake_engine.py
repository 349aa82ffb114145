"""What passes for a compiled engine where none is run: its manifest is right, its kernels are not."""

from __future__ import annotations

from pathlib import Path

from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.manifest import Manifest


def write_engine(root: Path, graph: str, manifest: Manifest) -> Path:
    """Write an engine for sm89 below `root` that says it was compiled from `graph` of an export."""
    engine = engine_path(root, graph, "sm89", "tensorrt_rtx")
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(b"kernels")
    EngineManifest(
        engine_sha256="0" * 64,
        engine_bytes=7,
        model_files={Path(graph).name: manifest.files[graph]},
        recipe_sha256="",
        library="tensorrt_rtx",
        version="1",
        target="sm89",
        options={},
        seconds=1.0,
        rebuild="accuquant build OUT",
        accuquant_version="0",
    ).save(engine)
    return engine
