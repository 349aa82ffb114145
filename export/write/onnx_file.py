"""Export a float .onnx that anybody wrote: the same graph with int8 weights and QDQ pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from accuquant._util.external_data import external_files
from accuquant._util.lock import only_writer
from accuquant._util.progress import Share
from accuquant._util.scratch import scratch_beside
from accuquant.errors import EngineError, ExportError
from accuquant.export.export_options import ExportChoices, ExportOptions, check_format
from accuquant.export.passes.layer_match import MatchLayersPass
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.read.network_graph import read_network
from accuquant.export.write.compare import Comparison, SourceComparison
from accuquant.export.write.data_file import read_now, remove_unread
from accuquant.export.write.lowered_files import possible_files, write_lowered
from accuquant.recipe import Recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack


class GraphFacts(TypedDict, total=False):
    """What write_onnx is told of a graph beside ExportOptions, for those who hand it on."""

    inputs: Path | None
    input_names: Mapping[str, str] | None
    compared: Callable[[Comparison], None] | None


def write_onnx(
    path: Path,
    recipe: Recipe,
    output: Path,
    options: ExportOptions | None = None,
    *,
    inputs: Path | None = None,
    input_names: Mapping[str, str] | None = None,
    compared: Callable[[Comparison], None] | None = None,
    progress: Share | None = None,
    **choices: Unpack[ExportChoices],
) -> list[Path]:
    """Quantize the float graph at `path` by `recipe` -> the files written, .onnx first.

    The graph may come from either exporter of torch or from Optimum: layers are found by the content of their
    weights. `choices` are single fields of `options`; what both leave open is as every engine takes it.
    "per-group" writes `<stem>_group_00.onnx` and so on beside `output`. A data file, which they share, has
    its content's hash in its name, so that an earlier export is whole until it is replaced; its data file
    goes when no graph beside it reads it any more. A graph older than the opset is converted. Files appear
    whole or not at all. `input_names` gives the input that is the "sample" or the "timestep" where no name
    does. Source, float graph and int8 graph are compared on the first call of the .npz `inputs`, or on a
    random one; `compared` is told the result, which the files hold too. Raises SourceError for a file that
    cannot be read, ExportError where a layer of the recipe is not in the graph, or the graph as it was read
    is not what the file computes, or the recipe has folds.
    """
    say = progress or (lambda _text, _share: None)
    options = replace(options or ExportOptions(), **choices)
    path, output = Path(path), Path(output)
    check_output(path, output)
    check_format(options, recipe.format)
    _check_unfolded(path, recipe)
    say("reading the graph", 0.0)
    model = read_network(path, recipe, min_opset=options.written_opset, input_names=input_names)
    MatchLayersPass(recipe.layers)(model)
    say("comparing with the source", 0.1)
    comparison = SourceComparison(model, path, recipe, inputs=inputs, input_names=input_names)
    with only_writer(output), scratch_beside(output) as staging:
        files = write_lowered(
            model,
            recipe,
            LoweringOptions.of(options),
            staging,
            output.name,
            group_prefix=f"{output.stem}_",
            external_data=options.external_data,
            hash_data=True,
            say=lambda text, share: say(text, 0.4 + 0.6 * share),
        )
        result = comparison.finish([staging / name for name in files.graphs], recipe)
        written = [output.parent / name for name in (*files.graphs, *files.others)]
        read_before = read_now(output)
        # the data file goes first: a graph that is there can be loaded
        for file in reversed(written):
            os.replace(staging / file.name, file)
        remove_unread(output, read_before)
    if compared is not None:
        compared(result)
    say("done", 1.0)
    return written


def _check_unfolded(path: Path, recipe: Recipe) -> None:
    if recipe.folds:
        raise ExportError(
            f"'{path}'",
            got="a recipe whose method scales channels of the network before it is traced",
            expected="a pipeline, whose network can be changed",
            remedy="Export the pipeline itself, or calibrate with another --method",
        )


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
