"""Build an engine once: what is already compiled from the same model with the same options is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import accuquant
from accuquant._util.files import sha256_of_file
from accuquant._util.gpu import find_gpu
from accuquant._util.lock import exclusive
from accuquant._util.progress import Progress, Silent
from accuquant._util.scratch import sweep_beside
from accuquant.engine_manifest import EngineManifest, digest_model, engine_key
from accuquant.engines.backend import resolve_backend
from accuquant.engines.compile import CompiledEngine, compile_engine
from accuquant.engines.options import BuildOptions
from accuquant.engines.profile import read_metadata
from accuquant.errors import EngineError, UsageError

_RECIPE = "accuquant.recipe_sha256"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk. `log` is the builder's, or empty where the engine was there already."""

    path: Path
    manifest: EngineManifest
    log: tuple[str, ...]

    @property
    def reused(self) -> bool:
        """Whether nothing had to be compiled."""
        return not self.log


def build_engine(
    model: Path,
    engine: Path,
    options: BuildOptions,
    *,
    rebuild: str,
    force: bool = False,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Compile `model` into `engine` with a manifest beside it, unless exactly that is there.

    Equal means: the graph, its external data, recipe, options, target, library and its version. Two
    processes that build the same file wait for each other. `rebuild` is the command to write into the
    manifest. `force` compiles in any case. Raises what compile_engine raises, and UsageError where the
    library cannot compile for the target.
    """
    model, engine, progress = Path(model), Path(engine), progress or Silent()
    backend = resolve_backend(options.backend)
    _check_engine_name(engine)
    if not backend.compiles_ahead:
        _check_local(backend.name, options)
    files, recipe = digest_model(model), read_metadata(model).get(_RECIPE, "")
    key = engine_key(files, recipe, backend.name, backend.version, options.to_dict())

    def wait() -> None:
        progress.message(f"Another process builds {engine}: waiting for it")

    with exclusive(engine.with_name(f".{engine.name}.lock"), wait):
        kept = None if force else _find_kept(engine, key, progress)
        if kept is not None:
            sweep_beside(engine)
            return BuiltEngine(engine, kept, ())
        compiled = compile_engine(model, engine, options, progress=progress)
        if digest_model(model) != files:
            raise _changed_meanwhile(model, engine)
        manifest = _describe(compiled, files, recipe, options, rebuild)
        manifest.save(engine)
    return BuiltEngine(engine, manifest, compiled.log)


def _find_kept(engine: Path, key: str, progress: Progress) -> EngineManifest | None:
    """Return the manifest of `engine` where it is whole and has this key."""
    if not engine.is_file():
        return None
    try:
        manifest = EngineManifest.load(engine)
        manifest.check_engine(engine)
    except EngineError as fault:
        progress.message(f"{engine} is not used ({fault.got}): compiling again")
        return None
    return manifest if manifest.key == key else None


def _describe(
    compiled: CompiledEngine, files: dict[str, str], recipe: str, options: BuildOptions, rebuild: str
) -> EngineManifest:
    return EngineManifest(
        engine_sha256=sha256_of_file(compiled.plan),
        engine_bytes=compiled.plan.stat().st_size,
        model_files=files,
        recipe_sha256=recipe,
        library=compiled.library,
        version=compiled.version,
        target=options.target.name,
        options=options.to_dict(),
        seconds=round(compiled.seconds, 3),
        rebuild=rebuild,
        accuquant_version=accuquant.__version__,
    )


def _check_engine_name(engine: Path) -> None:
    if engine.is_dir() or engine.suffix == ".onnx":
        raise UsageError(
            f"engine '{engine}'",
            got="a folder" if engine.is_dir() else "the name of a model",
            expected="a new file, like unet.engine",
            remedy="Give another --saveEngine",
        )


def _check_local(library: str, options: BuildOptions) -> None:
    """Refuse a target that the library, which measures on the GPU of this machine, cannot compile for."""
    gpu = find_gpu()
    if gpu.target != options.target.name:
        raise UsageError(
            f"target {options.target}",
            got=f"{library}, which compiles for the GPU of this machine ({gpu.name}, {gpu.target})",
            expected="a library that compiles for other GPUs",
            remedy="Give --backend tensorrt_rtx, leave --target out, or build on the other machine",
        )


def _changed_meanwhile(model: Path, engine: Path) -> EngineError:
    engine.unlink(missing_ok=True)
    return EngineError(
        f"model '{model}'",
        got="other bytes than when the build began",
        expected="a model that does not change while it is compiled",
        remedy="Wait for the export to finish, and build again",
    )
