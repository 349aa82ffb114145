"""The lowerings that differ for a recipe, and their graphs on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from accuquant.export.export_options import Lowering
from accuquant.export.for_target.noise import added_noise_db
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.passes.shared_scales import share_scales
from accuquant.export.write.lowered_files import write_lowered
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe


@dataclass(frozen=True)
class FloatGraph:
    """The float network that is to be lowered, and what its files will be called.

    `make` gives a fresh graph at each call, because lowering changes it. `name` is that of the .onnx file,
    `group_prefix` stands before group_00.onnx. `one_graph` says that whoever loads the export takes no more.
    """

    make: Callable[[], ir.Model]
    name: str
    group_prefix: str = ""
    external_data: bool | None = None
    one_graph: bool = False


@dataclass(frozen=True)
class Candidate:
    """One way to lower: how many engines it needs, and how much more int8 noise it makes."""

    lowering: Lowering
    engines: int
    noise_db: float


def list_candidates(graph: FloatGraph, recipe: Recipe) -> list[Candidate]:
    """Return the lowerings whose graphs differ: `rescale`, and others where scales depend on the group."""
    rescale = Candidate("rescale", 1, 0.0)
    scales = [layer.activation_scale for layer in recipe.layers.values()]
    if all(scale.min() == scale.max() for scale in scales):
        return [rescale]
    shared = share_scales(graph.make(), recipe)
    hybrid: list[Candidate] = []
    if any(_moved(layer, shared.layers[name]) for name, layer in recipe.layers.items()):
        hybrid = [Candidate("hybrid", 1, added_noise_db(recipe, shared))]
    per_group = [] if graph.one_graph else [Candidate("per-group", len(recipe.groups), 0.0)]
    return [rescale, *hybrid, *per_group]


def _moved(layer: LayerQParams, other: LayerQParams) -> bool:
    return not np.array_equal(layer.activation_scale, other.activation_scale)


def write_candidate(graph: FloatGraph, recipe: Recipe, options: LoweringOptions, folder: Path) -> Path:
    """Write the graphs into the new folder `folder`, as the export will -> that of the first step group."""
    folder.mkdir(parents=True)
    written = write_lowered(
        graph.make(),
        recipe,
        options,
        folder,
        graph.name,
        group_prefix=graph.group_prefix,
        external_data=graph.external_data,
    )
    return folder / written.graphs[0]
