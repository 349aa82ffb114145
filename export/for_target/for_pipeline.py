"""Export a pipeline for a target: choose what the caller left open, then export."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from accuquant._util.progress import Progress, Share, Silent
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.settle import Auto, keep, pick, scratch_beside, settle
from accuquant.export.passes.lowering import Affine, Lowering, Precision, choose_opset
from accuquant.export.read.trace import trace
from accuquant.export.write import pipeline_folder
from accuquant.manifest import Manifest
from accuquant.networks.network import float_weights
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


def export_pipeline_for(
    source: Source,
    recipe: Recipe,
    output: Path,
    target: str | None = None,
    *,
    lowering: Lowering | Auto = "auto",
    precision: Precision | Auto = "auto",
    affine: Affine | Auto = "auto",
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
    opset = choose_opset(options.pop("opset", None), "fp16" if precision == "auto" else precision)
    pipeline_folder.check_output(output)

    @cache
    def traced() -> ir.Model:
        recipe.check_weights(float_weights(source.network))
        shown.stage(f"tracing {source.name}", 0)
        return trace(source.network, source.signature, opset=opset, **pick(options, "dynamic"))

    graph = FloatGraph(
        lambda: traced().clone(),
        "model.onnx",
        one_graph=bool(options.get("whole_pipeline")),  # Optimum loads one
        **pick(options, "external_data"),
    )
    with scratch_beside(output) as scratch:
        settled, chosen = settle(
            graph, recipe, target, (lowering, precision, affine), options, scratch, shown
        )
        shown.stage(f"exporting {source.name}", 100)
        manifest = pipeline_folder.export_pipeline(
            source,
            recipe,
            output,
            lowering=settled.lowering,
            precision=settled.precision,
            affine=settled.affine,
            choice=chosen.choice if chosen else None,
            graph=traced() if traced.cache_info().currsize else None,
            opset=opset,
            progress=share,
            **options,
        )
        keep(chosen, output)
    return manifest
