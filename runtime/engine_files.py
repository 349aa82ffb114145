"""Find the TensorRT engine of each graph of an exported folder that fits this machine."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from accuquant._util.gpu import find_gpu
from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.errors import EngineError
from accuquant.manifest import Manifest

_LIBRARIES = ("tensorrt", "tensorrt_rtx")


def find_engines(root: Path, manifest: Manifest) -> tuple[Path, ...]:
    """Return the engine of each graph of the folder `root`, for the GPU of this machine.

    Of two libraries that are installed, tensorrt comes first. Raises EngineError where there is no GPU, no
    engine for it, or one that was compiled from other graphs than the folder holds.
    """
    gpu = find_gpu()
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            continue
        engines = tuple(engine_path(root, graph, gpu.target, library) for graph in manifest.graphs)
        if all(engine.is_file() for engine in engines):
            for engine, graph in zip(engines, manifest.graphs, strict=True):
                check_origin(engine, graph, manifest)
            return engines
    there = sorted(str(path.relative_to(root)) for path in (root / "engines").glob("*/*") if path.is_dir())
    raise EngineError(
        f"folder '{root}'",
        got=f"engines in {', '.join(there)}" if there else "no engines",
        expected=f"engines for {gpu.target} ({gpu.name}) of a library that is installed",
        remedy=f"Build them: accuquant build {shlex.quote(str(root))} --target {gpu.target}",
    )


def check_origin(engine: Path, graph: str, manifest: Manifest) -> None:
    """Raise EngineError unless `engine` was compiled from the graph that the exported folder holds now.

    An engine of an earlier export has other scales: it would run, and make other images.
    """
    built = EngineManifest.load(engine)
    folder = Path(graph).parent
    current = {name: manifest.files.get((folder / name).as_posix()) for name in built.model_files}
    if Path(graph).name not in current or current != built.model_files:
        raise EngineError(
            f"engine '{engine}'",
            got="an engine of another export",
            expected=f"one of '{graph}' as it is now",
            remedy=f"Build it again: {built.rebuild}",
        )
