"""What an export for a target does around the export itself: settle what is open, keep the engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accuquant._util.progress import Progress
from accuquant.engines import TARGETS
from accuquant.engines.jobs import list_jobs
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.choose import Chosen, choose_lowering, default_precision
from accuquant.export.for_target.compiled import keep_engine
from accuquant.export.for_target.export_target import resolve_target
from accuquant.export.passes.lowering import Affine, Lowering, LoweringOptions, Precision
from accuquant.export_choice import CPU
from accuquant.recipe import Recipe

Auto = Literal["auto"]


def settle(
    graph: FloatGraph,
    recipe: Recipe,
    target: str | None,
    named: tuple[Lowering | Auto, Precision | Auto, Affine | Auto],
    options: Mapping[str, Any],
    scratch: Path,
    progress: Progress,
) -> tuple[LoweringOptions, Chosen | None]:
    """Return the options with what was chosen where the caller named nothing, and why.

    The reason is that of the lowering; None where the caller named lowering and precision.
    """
    lowering, precision, affine = named
    settled = LoweringOptions(
        lowering="rescale" if lowering == "auto" else lowering,
        precision="fp32" if precision == "auto" else precision,
        affine=_default_affine(target) if affine == "auto" else affine,
        **pick(options, "float_weights"),
    )
    if lowering != "auto" and precision != "auto":
        return settled, None
    place = resolve_target(target)
    if precision == "auto":
        settled = replace(settled, precision=default_precision(place))
    if lowering != "auto":
        return settled, None
    chosen = choose_lowering(graph, recipe, place, settled, scratch, progress=progress)
    return replace(settled, lowering=chosen.lowering), chosen


def _default_affine(target: str | None) -> Affine:
    """Return where zero-points go: CPUs fuse them into pairs, TensorRT takes none there.

    A graph without a named target is one for every engine.
    """
    return "zero_point" if target == CPU else "shift"


def keep(chosen: Chosen | None, exported: Path) -> None:
    """Move the engine that was compiled to choose to where `accuquant build` looks for it."""
    if chosen is None or chosen.engine is None:
        return
    manifest = chosen.engine.built.manifest
    known = manifest.target in {target.name for target in TARGETS}  # else it is the GPU of this machine
    job = list_jobs(exported, targets=manifest.target if known else None, backend=manifest.library)[0]
    keep_engine(chosen.engine, job.engine, job.rebuild)


def pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of `options` that are called one of `names`."""
    return {name: options[name] for name in names if name in options}


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output`, on its disk; candidates of large networks do not fit in memory."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.choosing.", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
