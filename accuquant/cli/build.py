"""The command `accuquant build`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._build_options import build_options
from accuquant.cli._cluster import cluster_options, take_cluster
from accuquant.cli._command import Command
from accuquant.cli._options import ExportedFolder
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.errors import EngineError, UsageError
from accuquant.export_choice import CPU
from accuquant.manifest import MANIFEST_NAME, RECIPE_NAME, Manifest

if TYPE_CHECKING:
    from accuquant._util.progress import Progress
    from accuquant.engines.build import BuiltEngine
    from accuquant.engines.jobs import BuildJob
    from accuquant.units.cluster import Cluster

#: Rules of the linter whose violations crash TensorRT's compiler, or make it refuse or miscompute.
_FATAL = frozenset(
    {"constant-scale", "positive-scale", "zero-point", "level-type", "quantized-bias", "opset", "scale-type"}
)
_NOT_QUANTIZED = "not-quantized"


@click.command("build", cls=Command)
@click.argument("source", type=ExportedFolder(file_okay=True), metavar="OUT|MODEL.onnx", required=False)
@build_options
@cluster_options
@json_option("what was built")
def command(source: Path | None, onnx_file: Path | None, json_file: Path | None, **options: Any) -> None:
    """Compile the exported folder OUT, or one ONNX model, into TensorRT engines.

    The engines of OUT go to OUT/engines/<target>/<library>/, those of a download to a cache of our own, with
    a manifest beside each. What is there already, from the same graph with the same options, is kept. Where
    OUT holds its whole pipeline, text encoders and autoencoder get engines too. The flags are spelled as
    trtexec's.
    """
    chosen = [path for path in (source, onnx_file) if path is not None]
    if len(chosen) != 1:
        raise UsageError(
            "model",
            got=f"{len(chosen)} of them",
            expected="a folder that `accuquant export` wrote, or one .onnx file",
            remedy="Give one path: accuquant build OUT",
        )
    built = run(chosen[0], options)
    if json_file:
        write_json(json_file, json.dumps([_as_json(engine) for engine in built], indent=2))
    _print_summary(json_file, built)


def run(source: Path, options: dict[str, Any]) -> list[BuiltEngine]:
    """Check, compile and store every engine, with progress on stderr; `options` are the command's."""
    from accuquant.cli._progress import Bars
    from accuquant.engines.flags import removed_line
    from accuquant.engines.jobs import list_jobs

    with Bars() as progress:
        for flag in options.pop("removed", ()):
            progress.message(removed_line(flag))
        layer_info = options.pop("export_layer_info")
        verbose, force = options.pop("verbose"), options.pop("force")
        allow_float = options.pop("allow_float")
        cluster = take_cluster(options)
        if cluster is not None:  # workers have folders of their own to start from
            source = source.absolute()
            if options.get("timing_cache") is not None:
                options["timing_cache"] = options["timing_cache"].absolute()
        jobs = list_jobs(source, **options)
        if source.is_dir():
            advice = export_advice(source, Manifest.load(source), jobs[0].options.target.name)
            if advice:
                progress.message(advice)
        for job in {job.model: job for job in jobs}.values():  # parts are float
            _check(job.model, allow_float=allow_float or bool(job.part), say=progress.message)
        built = _build(jobs, source, cluster, force=force or layer_info is not None, progress=progress)
        if verbose:
            for engine in built:
                click.echo("\n".join(engine.log), err=True)
    if layer_info is not None:
        _write_layer_info(layer_info, built)
    return built


def _build(
    jobs: list[BuildJob], source: Path, cluster: Cluster | None, *, force: bool, progress: Progress
) -> list[BuiltEngine]:
    """Build one engine after the other, or all at once on the workers of a cluster, which see the files."""
    from accuquant.engines.build import build_engine

    if cluster is None:
        return [
            build_engine(
                job.model, job.engine, job.options, rebuild=job.rebuild, force=force, progress=progress
            )
            for job in jobs
        ]
    from accuquant.units.cluster import engine_of
    from accuquant.units.job import Job, no_networks
    from accuquant.units.units import InMemory

    def compute(unit: str) -> BuiltEngine:
        job = jobs[int(unit)]
        return build_engine(job.model, job.engine, job.options, rebuild=job.rebuild, force=force)

    marker = source / MANIFEST_NAME
    sees = {str(marker): marker.read_bytes()} if source.is_dir() else {}
    names = [str(number) for number in range(len(jobs))]
    with engine_of(cluster, lambda: Job(no_networks, {}, sees=sees), {}, progress.message) as engine:
        progress.stage("compiling", len(jobs))
        return InMemory(engine).map("engines", names, compute, progress.advance, anywhere=True)


def export_advice(folder: Path, manifest: Manifest, target: str) -> str:
    """Return one line with the command that exports for the GPU `target`, or "" where that was done.

    It was done if the lowering was chosen for a GPU, or if the user named what one wants.
    """
    chosen_for = manifest.choice.target if manifest.choice else CPU
    unsuited = manifest.lowering == "rescale" and len(manifest.groups) > 1 and chosen_for == CPU
    if manifest.precision != "fp32" and not unsuited:
        return ""
    whole = folder if folder.name else folder.resolve()
    words = ["accuquant", "export", manifest.source or "SOURCE", "--recipe", str(folder / RECIPE_NAME)]
    words += ["--target", target, "-o", f"{whole}-{target}"]
    made = f"{manifest.precision}, {manifest.lowering}"
    return f"{folder} holds {made}, which need not suit {target}. To choose what does: {shlex.join(words)}"


def _check(model: Path, *, allow_float: bool, say: Callable[[str], None]) -> None:
    """Refuse what the compiler cannot take before it tries: a dynamic scale would crash it."""
    from accuquant.export import check_model

    slow = []
    for violation in check_model(model):
        if violation.rule == _NOT_QUANTIZED:
            if not allow_float:
                raise EngineError(
                    f"model '{model}'",
                    got="no Q/DQ pair, so that the engine would run in float",
                    expected="a quantized model",
                    remedy="Quantize it with `accuquant export`, or compile it as it is with --allow-float",
                )
        elif violation.rule in _FATAL:
            raise EngineError(
                f"model '{model}', node '{violation.node}'",
                got=violation.message,
                expected=f"a graph without {violation.rule} violations",
                remedy=violation.remedy,
            )
        else:
            slow.append(violation)
    if slow:
        say(f"{model.name}: {len(slow)} nodes will be slow; `accuquant check {model}` names them")


def _write_layer_info(path: Path, built: list[BuiltEngine]) -> None:
    from dataclasses import asdict

    from accuquant._util.files import write_text
    from accuquant.audit.engine_layers import read_engine_layers

    layers = {
        str(engine.path): {"layers": [asdict(layer) for layer in read_engine_layers(engine.log).layers]}
        for engine in built
    }
    whole = next(iter(layers.values())) if len(layers) == 1 else layers
    write_text(path, json.dumps(whole, indent=2) + "\n")


def _as_json(built: BuiltEngine) -> dict[str, Any]:
    manifest = built.manifest
    return {
        "engine": str(built.path),
        "target": manifest.target,
        "library": manifest.library,
        "version": manifest.version,
        "bytes": manifest.engine_bytes,
        "seconds": manifest.seconds,
        "reused": built.reused,
        "key": manifest.key,
    }


def _print_summary(json_file: Path | None, built: list[BuiltEngine]) -> None:
    from rich.markup import escape

    rows = [
        (
            engine.manifest.target,
            f"{engine.manifest.engine_bytes / 1e6:.1f} MB",
            "there already" if engine.reused else f"{engine.manifest.seconds:.1f} s",
            escape(str(engine.path)),
        )
        for engine in built
    ]
    console = console_beside_json(json_file)
    print_table(console, ("target", "size", "compiled in", "engine"), rows, unbroken="engine")
    for name in dict.fromkeys(f"{e.manifest.library} {e.manifest.version}" for e in built):
        console.print(f"Compiled by {name}", markup=False)
