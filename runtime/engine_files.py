"""Find the TensorRT engine of each graph of an exported folder that fits this machine."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path

from accuquant._util.gpu import find_gpu
from accuquant.engine_manifest import EngineManifest, built_root, engine_path, part_engine_path
from accuquant.errors import EngineError
from accuquant.manifest import Manifest

_LIBRARIES = ("tensorrt", "tensorrt_rtx")


def find_engines(root: Path, manifest: Manifest, *, trust: bool = False) -> tuple[Path, ...]:
    """Return the engine of each graph of the folder `root`, for the GPU of this machine.

    Of two libraries that are installed, tensorrt comes first. Engines in a folder that was downloaded are
    looked at with `trust` only. Raises EngineError where there is no GPU, no engine for it, or one that was
    compiled from other graphs than the folder holds.
    """
    return _find(root, manifest, manifest.graphs, engine_path, trust)


def find_part_engine(root: Path, manifest: Manifest, part: str, *, trust: bool = False) -> Path:
    """Return the engine of a part around the network, such as text_encoder, as find_engines does."""

    def place(root: Path, _graph: str, target: str, library: str) -> Path:
        return part_engine_path(root, part, target, library)

    (engine,) = _find(root, manifest, (f"{part}/model.onnx",), place, trust)
    return engine


def _find(
    root: Path,
    manifest: Manifest,
    graphs: tuple[str, ...],
    engine_of: Callable[[Path, str, str, str], Path],
    trust: bool,
) -> tuple[Path, ...]:
    gpu = find_gpu()
    built = built_root(root)
    places = (built, root) if trust and built != root else (built,)
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            continue
        for place in places:
            engines = tuple(engine_of(place, graph, gpu.target, library) for graph in graphs)
            if all(engine.is_file() for engine in engines):
                for engine, graph in zip(engines, graphs, strict=True):
                    check_origin(engine, graph, manifest)
                return engines
    raise EngineError(
        f"folder '{root}'",
        got=_what_is_there(root, places),
        expected=f"engines of {', '.join(graphs)} for {gpu.target} ({gpu.name}), of an installed library",
        remedy=f"Build them: accuquant build {shlex.quote(str(root))} --target {gpu.target}",
    )


def _what_is_there(root: Path, places: tuple[Path, ...]) -> str:
    there = sorted(
        str(path.relative_to(place))
        for place in places
        for path in (place / "engines").glob("*/*")
        if path.is_dir()
    )
    found = f"engines in {', '.join(there)}" if there else "no engines"
    if root not in places and any((root / "engines").glob("*/*")):
        return f"{found} that were built here, and downloaded ones, executable code, without --trust-engines"
    return found


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
