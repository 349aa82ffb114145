"""Export a float .onnx that anybody wrote: the same graph with int8 weights and QDQ pairs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from accuquant.errors import ExportError
from accuquant.export.graph_files import save_graphs
from accuquant.export.lowering import (
    Affine,
    FloatWeights,
    Lowering,
    LoweringOptions,
    Precision,
    Progress,
    choose_opset,
    lower,
)
from accuquant.export.onnx_source import read_model
from accuquant.export.shared_scales import share_scales
from accuquant.recipe import Recipe


def export_onnx(
    path: Path,
    recipe: Recipe,
    output: Path,
    *,
    lowering: Lowering = "rescale",
    precision: Precision = "fp32",
    affine: Affine = "shift",
    float_weights: FloatWeights = "auto",
    opset: int | None = None,
    external_data: bool | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Quantize the float graph at `path` by `recipe` -> the files written, .onnx first.

    The graph may come from either exporter of torch or from Optimum: layers are found by the content of
    their weights. "per-group" writes `<stem>_group_00.onnx` and so on beside `output`, and one data file
    that they share. A graph older than `opset` (None: 21, or 22 for bf16) is converted. Files appear whole
    or not at all. Raises SourceError for a file that cannot be read, ExportError where a layer of the recipe
    is not in the graph.
    """
    say = progress or (lambda _text, _share: None)
    options = LoweringOptions(lowering, precision, affine, float_weights)
    opset = choose_opset(opset, precision)
    path, output = Path(path), Path(output)
    _check_output(path, output)
    say("reading the graph", 0.0)
    model = read_model(path, min_opset=opset)
    say("placing QDQ pairs", 0.4)
    if lowering == "hybrid":
        recipe = share_scales(model, recipe)
    graphs = lower(model, recipe, options, recipe.sha256())
    names = [output.name]
    if lowering == "per-group":
        names = [f"{output.stem}_group_{group:02d}.onnx" for group in range(len(graphs))]
    say("writing", 0.7)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.stem}.", dir=output.parent))
    try:
        written = save_graphs(
            dict(zip(names, graphs, strict=True)), staging, f"{output.name}_data", external_data=external_data
        )
        # the data file goes first: a graph that is there can be loaded
        for name in reversed(written):
            os.replace(staging / name, output.parent / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say("done", 1.0)
    return [output.parent / name for name in written]


def _check_output(path: Path, output: Path) -> None:
    if output.is_dir() or output.suffix != ".onnx":
        got = "a folder" if output.is_dir() else f"a name that ends in '{output.suffix}'"
    elif output.exists() and output.samefile(path):
        got = "the source itself"
    else:
        return
    raise ExportError(
        f"output '{output}'",
        got=got,
        expected="another path that ends in .onnx",
        remedy="Give -o quantized.onnx, for example",
    )
