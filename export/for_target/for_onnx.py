"""Export a float .onnx for a target: choose what the caller left open, then export; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from accuquant._util.progress import Progress, Share, Silent
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.settle import Auto, keep, pick, scratch_beside, settle
from accuquant.export.passes.lowering import Affine, Lowering, Precision, choose_opset
from accuquant.export.read.onnx_source import read_model
from accuquant.export.write import onnx_file
from accuquant.export_choice import ExportChoice
from accuquant.recipe import Recipe


def export_onnx_for(
    path: Path,
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
) -> tuple[list[Path], ExportChoice | None]:
    """Quantize the float graph at `path` by `recipe`, as suits `target` best -> the files, and the choice.

    The choice is None where the caller named the lowering. Everything else as in export_pipeline_for, with
    the options of export_onnx.
    """
    path, output, shown = Path(path), Path(output), progress or Silent()
    opset = choose_opset(options.pop("opset", None), "fp16" if precision == "auto" else precision)
    onnx_file.check_output(path, output)

    def read() -> ir.Model:
        return read_model(path, min_opset=opset)

    graph = FloatGraph(read, output.name, f"{output.stem}_", **pick(options, "external_data"))
    with scratch_beside(output) as scratch:
        settled, chosen = settle(
            graph, recipe, target, (lowering, precision, affine), options, scratch, shown
        )
        shown.stage(f"exporting {path}", 100)
        written = onnx_file.export_onnx(
            path,
            recipe,
            output,
            lowering=settled.lowering,
            precision=settled.precision,
            affine=settled.affine,
            opset=opset,
            progress=share,
            **options,
        )
        keep(chosen, written[0])
    return written, chosen.choice if chosen else None
