"""Export a float .onnx that anybody wrote: the same graph with int8 weights and QDQ pairs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from accuquant._util.external_data import external_files
from accuquant._util.progress import Share
from accuquant.errors import EngineError, ExportError
from accuquant.export.passes.lowering import (
    Affine,
    FloatWeights,
    Lowering,
    LoweringOptions,
    Precision,
    choose_opset,
)
from accuquant.export.read.onnx_source import read_model
from accuquant.export.write.lowered_files import possible_files, write_lowered
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
    progress: Share | None = None,
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
    check_output(path, output)
    say("reading the graph", 0.0)
    model = read_model(path, min_opset=opset)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.stem}.", dir=output.parent))
    try:
        files = write_lowered(
            model,
            recipe,
            options,
            staging,
            output.name,
            group_prefix=f"{output.stem}_",
            external_data=external_data,
            say=lambda text, share: say(text, 0.4 + 0.6 * share),
        )
        written = (*files.graphs, *files.others)
        # the data file goes first: a graph that is there can be loaded
        for name in reversed(written):
            os.replace(staging / name, output.parent / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say("done", 1.0)
    return [output.parent / name for name in written]


def check_output(path: Path, output: Path) -> None:
    """Raise ExportError unless `output` is an .onnx file, and nothing written for it is part of `path`.

    Parts of `path` are the file itself and those that its external data lies in.
    """
    if output.is_dir() or output.suffix != ".onnx":
        got = "a folder" if output.is_dir() else f"a name that ends in '{output.suffix}'"
    elif (overwritten := _overwritten(path, output)) is not None:
        got = "the source itself" if overwritten == path else f"a name that overwrites '{overwritten}'"
    else:
        return
    raise ExportError(
        f"output '{output}'",
        got=got,
        expected="another path that ends in .onnx",
        remedy="Give -o quantized.onnx, for example",
    )


def _overwritten(path: Path, output: Path) -> Path | None:
    """Return the file of the source that an export to `output` could replace, or None."""
    written = [file for file in possible_files(output) if file.exists()]
    for part in (path, *(path.parent / location for location in _locations(path))):
        if part.exists() and any(file.samefile(part) for file in written):
            return part
    return None


def _locations(path: Path) -> tuple[str, ...]:
    """Return where the external data of `path` lies; nothing for a file that read_model will refuse."""
    try:
        return external_files(path)
    except EngineError:
        return ()
