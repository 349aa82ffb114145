"""From what the user asked for to one job an engine: which graph, which target, which file, which shapes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuquant._util.gpu import find_gpu
from accuquant._util.real_model import real_model
from accuquant.engine_manifest import built_root, engine_path, part_engine_path
from accuquant.engines.backend import resolve_backend
from accuquant.engines.flags import make_profile, parse_memory_pools, parse_shapes
from accuquant.engines.options import BuildOptions, ShapeRange
from accuquant.engines.part_jobs import ALL, NETWORK, chosen_parts, part_profile
from accuquant.engines.profile import read_inputs, static_profile
from accuquant.engines.target import TARGETS, Target, parse_targets
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest

_SHAPE_OPTIONS = {"min_shapes": "--minShapes", "opt_shapes": "--optShapes", "max_shapes": "--maxShapes"}
_SWITCHES = {
    "version_compatible": "--versionCompatible",
    "strip_weights": "--stripWeights",
    "refit": "--refit",
    "no_tf32": "--noTF32",
}

_FLAGS = {
    *_SHAPE_OPTIONS,
    *_SWITCHES,
    "builder_optimization_level",
    "hardware_compatibility",
    "memory_pools",
    "profiling_verbosity",
}


@dataclass(frozen=True)
class BuildJob:
    """One engine to build. `rebuild` is the command that builds it.

    `part` is the part around the network that it is for, in float; "" for the network.
    """

    model: Path
    engine: Path
    options: BuildOptions
    rebuild: str
    part: str = ""


def list_jobs(
    source: Path,
    *,
    targets: str | None = None,
    backend: str = "auto",
    batch_size: int | None = None,
    save_engine: Path | None = None,
    timing_cache: Path | None = None,
    parts: str = NETWORK,
    **flags: Any,
) -> list[BuildJob]:
    """Return a job for each graph of `source` and each target.

    `parts` are those around the network that get engines too: "network" for none, "all", or a list of their
    names. The shapes in `flags` are those of the network.

    `source` is an exported folder, whose files must be those that were exported, or an .onnx file.
    `targets` is a list like "sm86,sm89"; None is the GPU of this machine. `flags` are the other options
    of `accuquant build`, by their Python names. Raises UsageError and EngineError.
    """
    unknown = sorted(set(flags) - _FLAGS)
    if unknown:
        raise TypeError(f"list_jobs() got an unexpected keyword argument '{unknown[0]}'")
    source = Path(source)
    library = resolve_backend(backend)
    root, graphs, sizes = _graphs(source)
    chosen = parse_targets(targets) if targets is not None else (_local_target(source),)
    if save_engine is not None and len(graphs) * len(chosen) > 1:
        raise UsageError(
            "--saveEngine",
            got=f"one file for {len(graphs)} graphs and {len(chosen)} targets",
            expected="one engine to save",
            remedy="Leave it out: the engines go to the folder engines/, one folder a target",
        )
    command = _rebuild_command(source, library.name, batch_size, save_engine, flags)
    jobs = []
    for graph in graphs:
        model = real_model(root / graph)
        profile = _profile(model, batch_size, sizes, flags)
        for target in chosen:
            engine = save_engine or engine_path(built_root(root), graph, target.name, library.name)
            cache = timing_cache or engine.parent / "timing.cache"
            options = _options(target, library.name, profile, cache, flags)
            jobs.append(BuildJob(model, engine, options, f"{command} --target {target}"))
    if source.is_dir() and save_engine is None:
        names = chosen_parts(Manifest.load(source), parts)
    elif parts in (NETWORK, ALL):
        names = ()
    else:
        raise UsageError(
            f"--parts {parts}",
            got="one graph",
            expected="a folder that `accuquant export --whole-pipeline` wrote, and no --saveEngine",
            remedy="Leave --parts out",
        )
    for part in names:
        model = real_model(root / part / "model.onnx")
        profile = part_profile(root, part, sizes=sizes, batch_size=batch_size)
        again = f"{_rebuild_command(source, library.name, batch_size, None, flags)} --parts {part}"
        for target in chosen:
            engine = part_engine_path(built_root(root), part, target.name, library.name)
            options = _options(
                target, library.name, profile, timing_cache or engine.parent / "timing.cache", flags
            )
            jobs.append(BuildJob(model, engine, options, f"{again} --target {target}", part))
    return jobs


def _graphs(source: Path) -> tuple[Path, tuple[str, ...], dict[str, int]]:
    """Return (the folder, the graphs in it, sizes of named extents that are known)."""
    if source.is_file():
        return source.parent, (source.name,), {}
    manifest = Manifest.load(source)
    manifest.graph_paths(source)
    manifest.check_files(source)
    return source, manifest.graphs, manifest.signature.sizes


def _local_target(source: Path) -> Target:
    try:
        return Target(*find_gpu().capability)
    except EngineError as fault:
        raise EngineError(
            "target",
            got=f"no --target, and {fault.got} in this machine",
            expected=f"one or more of {', '.join(target.name for target in TARGETS)}",
            remedy=f"Say for which GPU: accuquant build {shlex.quote(str(source))} --target sm89",
        ) from fault


def _profile(
    model: Path, batch_size: int | None, sizes: Mapping[str, int], flags: Mapping[str, Any]
) -> dict[str, ShapeRange]:
    given = {name: parse_shapes(option, flags.get(name, "")) for name, option in _SHAPE_OPTIONS.items()}
    if not any(given.values()):
        return static_profile(model, batch_size=batch_size, sizes=sizes)
    if batch_size is not None:
        raise UsageError(
            "--batch-size",
            got="shapes as well",
            expected="a batch size or shapes",
            remedy="Write the batch into --minShapes, --optShapes and --maxShapes",
        )
    return make_profile(read_inputs(model)[0], **given)


def _options(
    target: Target, library: str, profile: dict[str, ShapeRange], cache: Path, flags: Mapping[str, Any]
) -> BuildOptions:
    return BuildOptions(
        target=target,
        backend=library,
        profile=profile,
        builder_optimization_level=flags.get("builder_optimization_level"),
        profiling_verbosity=flags.get("profiling_verbosity", "detailed"),
        memory_pools=parse_memory_pools(flags.get("memory_pools", "")),
        hardware_compatibility=flags.get("hardware_compatibility", "none"),
        version_compatible=flags.get("version_compatible", False),
        strip_weights=flags.get("strip_weights", False),
        refit=flags.get("refit", False),
        tf32=not flags.get("no_tf32", False),
        timing_cache=cache,
    )


def _rebuild_command(
    source: Path, library: str, batch_size: int | None, save_engine: Path | None, flags: Mapping[str, Any]
) -> str:
    """Return the command without its --target."""
    words = ["accuquant", "build", str(source), "--backend", library]
    if batch_size is not None:
        words += ["--batch-size", str(batch_size)]
    if save_engine is not None:
        words.append(f"--saveEngine={save_engine}")
    words += [f"{option}={flags[name]}" for name, option in _SHAPE_OPTIONS.items() if flags.get(name)]
    if flags.get("builder_optimization_level") is not None:
        words.append(f"--builderOptimizationLevel={flags['builder_optimization_level']}")
    if flags.get("memory_pools"):
        words.append(f"--memPoolSize={flags['memory_pools']}")
    if flags.get("hardware_compatibility", "none") != "none":
        words.append(f"--hardwareCompatibilityLevel={flags['hardware_compatibility']}")
    words += [option for name, option in _SWITCHES.items() if flags.get(name)]
    return shlex.join(words)
