"""Read the float graph that a recipe is for, from a file in which its inputs may have other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from accuquant.errors import ExportError, SourceError
from accuquant.export.read.onnx_inputs import OnnxInputs, inputs_of
from accuquant.export.read.onnx_source import read_float
from accuquant.graph.vocabulary import SIGNATURE_KEY
from accuquant.recipe import Recipe


def read_network(
    path: Path, recipe: Recipe, *, min_opset: int, input_names: Mapping[str, str] | None = None
) -> ir.Model:
    """Read the float .onnx at `path` for `recipe`; its inputs keep their names, and the graph notes them.

    `input_names` gives the input that is the "sample" or the "timestep" where its name does not tell. A graph
    in which neither can be told is left to the lowering, which may need neither. Raises what read_float and
    inputs_of do, and ExportError for noise levels where the recipe's step groups are of timesteps.
    """
    model = read_float(path, min_opset=min_opset)
    try:
        inputs = inputs_of(model.graph, path, input_names)
    except SourceError:
        if input_names:
            raise
        return model
    if inputs.takes_sigma and len(recipe.groups) > 1 and "timestep" not in (input_names or {}):
        raise _noise_levels(path, inputs)
    signature = recipe.signature
    names = [spec.name for spec in signature.inputs]
    if set(names) != {spec.name for spec in inputs.specs}:
        model.graph.meta[SIGNATURE_KEY] = replace(
            inputs.signature(),
            architecture=signature.architecture,
            timestep_divisor=signature.timestep_divisor,
        )
    return model


def _noise_levels(path: Path, inputs: OnnxInputs) -> ExportError:
    return ExportError(
        f"'{path}'",
        got=f"the input '{inputs.timestep}', which takes noise levels by its name",
        expected="timesteps, which the recipe's step groups are ranges of",
        remedy=f"Give --input-names timestep={inputs.timestep} if it takes timesteps, else no --recipe",
    )
