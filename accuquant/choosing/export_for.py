"""Export for a target: choose what the caller left open, export, and keep the engine that was compiled."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from accuquant.choosing.candidates import FloatGraph
from accuquant.choosing.choose import Chosen, choose_lowering, default_precision
from accuquant.choosing.compiled import keep_engine
from accuquant.choosing.target import resolve_target
from accuquant.engines import TARGETS
from accuquant.engines.jobs import list_jobs
from accuquant.export import onnx_file, pipeline_folder
from accuquant.export.lowering import Lowering, LoweringOptions, Precision
from accuquant.export.onnx_source import read_model
from accuquant.export_choice import ExportChoice
from accuquant.manifest import Manifest
from accuquant.pipelines.source import Source
from accuquant.progress import Progress, Silent
from accuquant.recipe import Recipe

Auto = Literal["auto"]
Share = Callable[[str, float], None]


def export_pipeline_for(
    source: Source,
    recipe: Recipe,
    output: Path,
    target: str | None = None,
    *,
    lowering: Lowering | Auto = "auto",
    precision: Precision | Auto = "auto",
    share: Share | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Write `source`, quantized by `recipe`, into the folder `output`, as suits `target` best.

    `target` is "cpu", "gpu", a compute capability like "sm89", or None, as resolve_target takes it. What is
    "auto" is chosen, and the manifest's `choice` says why. An engine that was compiled to choose is kept for
    `accuquant build`. `options`, and `share` for their progress, are those of export_pipeline, whose errors
    it raises too.
    """
    output, shown = Path(output), progress or Silent()
    pipeline_folder.check_output(output)

    @cache
    def traced() -> ir.Model:
        from accuquant.export.float_graph import trace
        from accuquant.network import float_weights

        recipe.check_weights(float_weights(source.network))
        shown.stage(f"tracing {source.name}", 0)
        return trace(source.network, source.signature, **_pick(options, "opset", "dynamic"))

    graph = FloatGraph(lambda: traced().clone(), "model.onnx", **_pick(options, "external_data"))
    with _scratch(output) as scratch:
        settled, chosen = _settle(graph, recipe, target, (lowering, precision), options, scratch, shown)
        shown.stage(f"exporting {source.name}", 100)
        manifest = pipeline_folder.export_pipeline(
            source,
            recipe,
            output,
            lowering=settled.lowering,
            precision=settled.precision,
            choice=chosen.choice if chosen else None,
            graph=traced() if traced.cache_info().currsize else None,
            progress=share,
            **options,
        )
        _keep(chosen, output)
    return manifest


def export_onnx_for(
    path: Path,
    recipe: Recipe,
    output: Path,
    target: str | None = None,
    *,
    lowering: Lowering | Auto = "auto",
    precision: Precision | Auto = "auto",
    share: Share | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[list[Path], ExportChoice | None]:
    """Quantize the float graph at `path` by `recipe`, as suits `target` best -> the files, and the choice.

    The choice is None where the caller named the lowering. Everything else as in export_pipeline_for, with
    the options of export_onnx.
    """
    path, output, shown = Path(path), Path(output), progress or Silent()
    onnx_file.check_output(path, output)

    def read() -> ir.Model:
        return read_model(path, min_opset=options.get("opset", 21))

    graph = FloatGraph(read, output.name, f"{output.stem}_", **_pick(options, "external_data"))
    with _scratch(output) as scratch:
        settled, chosen = _settle(graph, recipe, target, (lowering, precision), options, scratch, shown)
        shown.stage(f"exporting {path}", 100)
        written = onnx_file.export_onnx(
            path,
            recipe,
            output,
            lowering=settled.lowering,
            precision=settled.precision,
            progress=share,
            **options,
        )
        _keep(chosen, written[0])
    return written, chosen.choice if chosen else None


def _settle(
    graph: FloatGraph,
    recipe: Recipe,
    target: str | None,
    named: tuple[Lowering | Auto, Precision | Auto],
    options: Mapping[str, Any],
    scratch: Path,
    progress: Progress,
) -> tuple[LoweringOptions, Chosen | None]:
    """Return the options with what was chosen where the caller named nothing, and why; None if he did."""
    lowering, precision = named
    settled = LoweringOptions(
        lowering="rescale" if lowering == "auto" else lowering,
        precision="fp32" if precision == "auto" else precision,
        **_pick(options, "affine", "float_weights"),
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


def _keep(chosen: Chosen | None, exported: Path) -> None:
    """Move the engine that was compiled to choose to where `accuquant build` looks for it."""
    if chosen is None or chosen.engine is None:
        return
    manifest = chosen.engine.built.manifest
    known = manifest.target in {target.name for target in TARGETS}  # else it is the GPU of this machine
    job = list_jobs(exported, targets=manifest.target if known else None, backend=manifest.library)[0]
    keep_engine(chosen.engine, job.engine, job.rebuild)


def _pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output`, on its disk; candidates of large networks do not fit in memory."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.choosing.", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
