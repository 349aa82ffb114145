"""From a float graph and a recipe to QDQ graphs: the order of the passes, and what a graph says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

import accuquant
from accuquant.errors import UsageError
from accuquant.export.passes.correct_bias import CorrectBiasPass
from accuquant.export.passes.decompose_norms import DecomposeNormsPass
from accuquant.export.passes.half_precision import HalfPrecisionPass
from accuquant.export.passes.join_projections import JoinProjectionsPass
from accuquant.export.passes.layer_match import MatchLayersPass
from accuquant.export.passes.quantize_activations import QuantizeActivationsPass
from accuquant.export.passes.quantize_before_concat import QuantizeBeforeConcatPass
from accuquant.export.passes.quantize_weights import QuantizeWeightsPass
from accuquant.export.passes.store_half import AUTO_ABOVE, StoreHalfPass
from accuquant.recipe import Recipe

Lowering = Literal["rescale", "hybrid", "per-group"]
Precision = Literal["fp32", "fp16", "bf16"]
Affine = Literal["shift", "zero_point"]
FloatWeights = Literal["auto", "fp32", "fp16"]
_CHOICES = {
    "lowering": ("rescale", "hybrid", "per-group"),
    "precision": ("fp32", "fp16", "bf16"),
    "affine": ("shift", "zero_point"),
    "float_weights": ("auto", "fp32", "fp16"),
}
_HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
#: QDQ pairs with float16 scales need opset 19, Conv in bfloat16 needs 22.
_MIN_OPSET = {"fp32": 19, "fp16": 19, "bf16": 22}
_DEFAULT_OPSET = 21


@dataclass(frozen=True)
class LoweringOptions:
    """How step groups, float precision and zero-points are written.

    `lowering` "rescale" is one graph that derives the step group from the timestep, "hybrid" the same
    with a recipe that share_scales has changed, "per-group" one graph a group with constant scales.
    `affine` "shift" writes zero-points as an addition around a symmetric QDQ pair, which every engine
    takes; "zero_point" writes them into the pair.
    `float_weights` is how weights of layers that stay float are stored; "auto" is fp16 above 100 MB.
    """

    lowering: Lowering = "rescale"
    precision: Precision = "fp32"
    affine: Affine = "shift"
    float_weights: FloatWeights = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    got=repr(getattr(self, name)),
                    expected=f"one of {', '.join(choices)}",
                    remedy=f"Give --{name.replace('_', '-')} {choices[0]}, for example",
                )


def choose_opset(opset: int | None, precision: Precision) -> int:
    """Return `opset`, or the default for `precision` where it is None. Raises UsageError if it is too low."""
    lowest = _MIN_OPSET[precision]
    if opset is None:
        return max(lowest, _DEFAULT_OPSET)
    if opset < lowest:
        raise UsageError(
            "--opset",
            got=f"{opset} with --precision {precision}",
            expected=f"{lowest} or later",
            remedy=f"Give --opset {max(lowest, _DEFAULT_OPSET)}, or leave it out",
        )
    return opset


def lower(model: ir.Model, recipe: Recipe, options: LoweringOptions, digest: str) -> list[ir.Model]:
    """Quantize the float `model` by `recipe` -> one graph, or one a step group.

    `model` is changed. Graphs of several groups share their weight tensors. `digest` is the SHA-256 of
    the recipe file. Raises ExportError where the graph cannot carry the recipe.
    """
    MatchLayersPass(recipe.layers)(model)
    CorrectBiasPass(recipe.layers)(model)
    _forget_origin(model)
    QuantizeWeightsPass(recipe.layers, scalar_conv_scales=options.precision in _HALVES)(model)
    if options.precision in _HALVES:
        DecomposeNormsPass()(model)
        HalfPrecisionPass(_HALVES[options.precision])(model)
    elif options.float_weights != "fp32":
        StoreHalfPass(above=AUTO_ABOVE if options.float_weights == "auto" else 0)(model)
    if options.lowering != "per-group":
        return [_finish(model, recipe, options, digest, None)]
    return [_finish(model.clone(), recipe, options, digest, group) for group in range(len(recipe.groups))]


def _forget_origin(model: ir.Model) -> None:
    """Drop stack traces and doc strings, which name files of the machine that traced the network."""
    kept = {node: dict(node.metadata_props) for node in model.graph}
    ClearMetadataAndDocStringPass()(model)
    for node, metadata in kept.items():
        node.metadata_props.update({k: v for k, v in metadata.items() if k.startswith("accuquant.")})


def _finish(
    model: ir.Model, recipe: Recipe, options: LoweringOptions, digest: str, group: int | None
) -> ir.Model:
    QuantizeActivationsPass(
        recipe.layers,
        recipe.groups,
        group=group,
        affine=options.affine,
        timestep_divisor=recipe.signature.timestep_divisor,
    )(model)
    if options.precision in _HALVES:
        JoinProjectionsPass()(model)
        QuantizeBeforeConcatPass()(model)
    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)
    _describe(model, recipe, options, digest, group)
    return model


def _describe(
    model: ir.Model, recipe: Recipe, options: LoweringOptions, digest: str, group: int | None
) -> None:
    model.producer_name = "accuquant"
    model.producer_version = accuquant.__version__
    model.metadata_props.update(
        {
            "accuquant.version": accuquant.__version__,
            "accuquant.group_edges": json.dumps(list(recipe.groups.edges)),
            "accuquant.lowering": options.lowering,
            "accuquant.precision": options.precision,
            "accuquant.signature": json.dumps(recipe.signature.to_dict(), sort_keys=True),
            "accuquant.recipe_sha256": digest,
        }
    )
    if "method" in recipe.calibration:
        model.metadata_props["accuquant.calibration"] = str(recipe.calibration["method"])
    if group is not None:
        model.metadata_props["accuquant.group"] = str(group)
