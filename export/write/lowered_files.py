"""Lower a float graph and write what comes out: one file, or one a step group with shared weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import onnx_ir as ir

from accuquant._util.progress import Share
from accuquant.export.passes.lowering import LoweringOptions, lower
from accuquant.export.passes.shared_scales import share_scales
from accuquant.export.write.data_file import data_files, data_name
from accuquant.export.write.graph_files import save_graphs
from accuquant.recipe import Recipe


@dataclass(frozen=True)
class LoweredFiles:
    """What was written into a folder.

    `graphs` are the names of the .onnx files, noisiest step group first; `others` that of the data file,
    if there is one. `recipe` is what the graphs carry: with shared scales where the lowering is "hybrid".
    """

    graphs: tuple[str, ...]
    others: tuple[str, ...]
    recipe: Recipe


def write_lowered(
    model: ir.Model,
    recipe: Recipe,
    options: LoweringOptions,
    folder: Path,
    name: str,
    *,
    group_prefix: str = "",
    external_data: bool | None = None,
    hash_data: bool = False,
    say: Share = lambda _text, _share: None,
) -> LoweredFiles:
    """Quantize the float `model` by `recipe` and write `folder/name`.

    `model` is changed. For "per-group" the files are called `<group_prefix>group_00.onnx` and so on; their
    data file is `<name>_data`, with its content's hash before the suffix if `hash_data`. `say` is told
    between 0 and 1. Raises ExportError where the graph cannot carry the recipe.
    """
    say("placing QDQ pairs", 0.0)
    if options.lowering == "hybrid":
        recipe = share_scales(model, recipe)
    graphs = lower(model, recipe, options, recipe.sha256())
    names = [name]
    if options.lowering == "per-group":
        names = [f"{group_prefix}group_{group:02d}.onnx" for group in range(len(graphs))]
    say("writing", 0.5)
    written = save_graphs(
        dict(zip(names, graphs, strict=True)),
        folder,
        data_name(name),
        external_data=external_data,
        hash_data=hash_data,
    )
    return LoweredFiles(tuple(names), tuple(written[len(names) :]), recipe)


def possible_files(output: Path) -> Iterator[Path]:
    """Yield what write_lowered may write for `output` with any lowering; groups and hashes that are there."""
    yield output
    yield from data_files(output)
    yield from output.parent.glob(f"{escape(output.stem)}_group_[0-9]*.onnx")
