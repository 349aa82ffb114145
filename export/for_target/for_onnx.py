"""Export a float .onnx for a target: choose what the caller left open, then export; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from accuquant._util.progress import Progress, Share, Silent
from accuquant._util.scratch import scratch_beside
from accuquant.export.export_options import ExportOptions
from accuquant.export.for_target.candidates import FloatGraph
from accuquant.export.for_target.settle import keep, settle
from accuquant.export.read.network_graph import read_network
from accuquant.export.write import onnx_file
from accuquant.export.write.onnx_file import GraphFacts
from accuquant.export_choice import ExportChoice
from accuquant.recipe import Recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack


def export_onnx(
    path: Path,
    recipe: Recipe,
    output: Path,
    options: ExportOptions | None = None,
    *,
    share: Share | None = None,
    progress: Progress | None = None,
    **facts: Unpack[GraphFacts],
) -> tuple[list[Path], ExportChoice | None]:
    """Quantize the float graph at `path` by `recipe`, as suits the target best -> the files, and the choice.

    The choice is None where the caller named the lowering. Everything else as in export_pipeline; `facts`
    and the errors are those of write_onnx.
    """
    path, output, shown = Path(path), Path(output), progress or Silent()
    options = options or ExportOptions()
    opset = options.written_opset
    onnx_file.check_output(path, output)

    def read() -> ir.Model:
        return read_network(path, recipe, min_opset=opset, input_names=facts.get("input_names"))

    graph = FloatGraph(read, output.name, f"{output.stem}_", external_data=options.external_data)
    with scratch_beside(output) as scratch:
        settled, chosen = settle(graph, recipe, options, scratch, shown)
        shown.stage(f"exporting {path}", 100)
        written = onnx_file.write_onnx(path, recipe, output, settled, progress=share, **facts)
        keep(chosen, written[0])
    return written, chosen.choice if chosen else None
