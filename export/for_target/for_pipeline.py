"""Export a pipeline for a target: choose what the caller left open, then export."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx_ir as ir

from accuquant._util.progress import Progress, Share, Silent
from accuquant._util.scratch import scratch_beside
from accuquant.export.export_options import ExportOptions, check_format
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.settle import keep, settle
from accuquant.export.read.trace import trace
from accuquant.export.write import pipeline_folder
from accuquant.export.write.control_folder import denoising_part
from accuquant.export.write.decoder_part import check_decoder_recipe
from accuquant.manifest import Manifest
from accuquant.networks.network import float_weights
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


def export_pipeline(
    source: Source,
    recipe: Recipe,
    output: Path,
    options: ExportOptions | None = None,
    *,
    decoder: Recipe | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write `source`, quantized by `recipe`, into the folder `output`, as suits `options.target` best.

    What is "auto" is chosen, and the manifest's `choice` says why. An engine that was compiled to choose is
    kept for `accuquant build`. `decoder` is the recipe of the autoencoder's decoder. `share` is for the
    progress of write_pipeline, whose errors this raises too.
    """
    output, shown = Path(output), progress or Silent()
    original = source.called_as(recipe.signature)
    source = pipeline_folder.folded_source(original, recipe)
    network, own = denoising_part(source, recipe)
    options = options or ExportOptions()
    opset, dynamic = options.written_opset, options.dynamic
    pipeline_folder.check_output(output)
    check_format(options, recipe.format)
    if decoder is not None:
        check_decoder_recipe(decoder)

    @cache
    def traced() -> ir.Model:
        recipe.check_weights(float_weights(source.network))
        shown.stage(f"tracing {source.name}", 0)
        return trace(network, own.signature, opset=opset, dynamic=dynamic)

    graph = FloatGraph(
        lambda: traced().clone(),
        "model.onnx",
        one_graph=options.whole_pipeline,  # Optimum loads one
        external_data=options.external_data,
    )
    with scratch_beside(output) as scratch:
        settled, chosen = settle(graph, own, options, scratch, shown)
        shown.stage(f"exporting {source.name}", 100)
        manifest = pipeline_folder.write_pipeline(
            original,
            recipe,
            output,
            settled,
            choice=chosen.choice if chosen else None,
            graph=traced() if traced.cache_info().currsize else None,
            decoder=decoder,
            progress=share,
        )
        keep(chosen, output)
    return manifest
