"""What an export for a target does around the export itself: settle what is open, keep the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accuquant._util.progress import Progress
from accuquant.engines import TARGETS
from accuquant.engines.jobs import list_jobs
from accuquant.export.export_options import ExportOptions
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.choose import Chosen, choose_lowering, default_precision
from accuquant.export.for_target.compiled import keep_engine
from accuquant.export.for_target.export_target import resolve_target
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.recipe import Recipe


def settle(
    graph: FloatGraph, recipe: Recipe, options: ExportOptions, scratch: Path, progress: Progress
) -> tuple[ExportOptions, Chosen | None]:
    """Return `options` with what was chosen where the caller named nothing, and why.

    The reason is that of the lowering; None where the caller named it.
    """
    if options.lowering != "auto" and options.precision != "auto":
        return options, None
    place = resolve_target(options.target)
    if options.precision == "auto":
        options = replace(options, precision=default_precision(place))
    if options.lowering != "auto":
        return options, None
    chosen = choose_lowering(graph, recipe, place, LoweringOptions.of(options), scratch, progress=progress)
    return replace(options, lowering=chosen.lowering), chosen


def keep(chosen: Chosen | None, exported: Path) -> None:
    """Move the engine that was compiled to choose to where `accuquant build` looks for it."""
    if chosen is None or chosen.engine is None:
        return
    manifest = chosen.engine.built.manifest
    known = manifest.target in {target.name for target in TARGETS}  # else it is the GPU of this machine
    job = list_jobs(exported, targets=manifest.target if known else None, backend=manifest.library)[0]
    keep_engine(chosen.engine, job.engine, job.rebuild)
