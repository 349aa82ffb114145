"""From a float graph and a recipe to QDQ graphs: the order of the passes, and what a graph says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

import accuquant
from accuquant.export.export_options import (
    Affine,
    ExportOptions,
    FloatWeights,
    Lowering,
    Precision,
    WeightStorage,
)
from accuquant.export.passes.correct_bias import CorrectBiasPass
from accuquant.export.passes.correct_prediction import CorrectPredictionPass
from accuquant.export.passes.decompose_norms import DecomposeNormsPass
from accuquant.export.passes.half_precision import HalfPrecisionPass
from accuquant.export.passes.join_projections import JoinProjectionsPass
from accuquant.export.passes.layer_match import MatchLayersPass
from accuquant.export.passes.quantize_activations import QuantizeActivationsPass
from accuquant.export.passes.quantize_before_concat import QuantizeBeforeConcatPass
from accuquant.export.passes.quantize_weights import QuantizeWeightsPass
from accuquant.export.passes.store_half import AUTO_ABOVE, StoreHalfPass
from accuquant.export.passes.store_int4 import StoreInt4Pass
from accuquant.graph import vocabulary
from accuquant.graph.vocabulary import SIGNATURE_KEY
from accuquant.networks.architectures import ONE_STEP
from accuquant.networks.signature import Signature
from accuquant.recipe import Recipe

_HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class LoweringOptions:
    """How step groups, float precision and zero-points are written: ExportOptions with nothing left open.

    "hybrid" is "rescale" with a recipe that share_scales has changed.
    """

    lowering: Lowering
    precision: Precision
    affine: Affine
    float_weights: FloatWeights
    weight_storage: WeightStorage = "int8"

    @classmethod
    def of(cls, options: ExportOptions) -> LoweringOptions:
        """Return what `options` name; what they leave open is as every engine takes it."""
        return cls(
            lowering="rescale" if options.lowering == "auto" else options.lowering,
            precision="fp32" if options.precision == "auto" else options.precision,
            affine="shift" if options.affine == "auto" else options.affine,
            float_weights=options.float_weights,
            weight_storage=options.weight_storage,
        )


def lower(model: ir.Model, recipe: Recipe, options: LoweringOptions, digest: str) -> list[ir.Model]:
    """Quantize the float `model` by `recipe` -> one graph, or one a step group.

    `model` is changed. Graphs of several groups share their weight tensors. `digest` is the SHA-256 of
    the recipe file. Raises ExportError where the graph cannot carry the recipe.
    """
    MatchLayersPass(recipe.layers)(model)
    CorrectBiasPass(recipe.layers)(model)
    _forget_origin(model)
    QuantizeWeightsPass(recipe.layers, half=_HALVES.get(options.precision))(model)
    DecomposeNormsPass(wrong_only=options.precision not in _HALVES)(model)
    if options.precision in _HALVES:
        HalfPrecisionPass(_HALVES[options.precision])(model)
    elif options.float_weights != "fp32":
        half = _HALVES["fp16" if options.float_weights == "auto" else options.float_weights]
        StoreHalfPass(half, above=AUTO_ABOVE if options.float_weights == "auto" else 0)(model)
    if options.weight_storage == "int4":
        StoreInt4Pass(recipe.layers)(model)
    if options.lowering != "per-group":
        return [_finish(model, recipe, options, digest, None)]
    return [_finish(model.clone(), recipe, options, digest, group) for group in range(len(recipe.groups))]


def signature_of_graph(graph: ir.Graph, recipe: Recipe) -> Signature:
    """Return the signature in the graph's own names, where read_network noted them, else the recipe's."""
    named: Signature = graph.meta.get(SIGNATURE_KEY, recipe.signature)
    return named


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
        timestep=signature_of_graph(model.graph, recipe).timestep.name,
        timestep_divisor=recipe.signature.timestep_divisor,
    )(model)
    if recipe.correction is not None:
        CorrectPredictionPass(
            recipe.correction,
            timestep=signature_of_graph(model.graph, recipe).timestep.name,
            timestep_divisor=recipe.signature.timestep_divisor,
        )(model)
    if options.precision in _HALVES:
        JoinProjectionsPass()(model)
        QuantizeBeforeConcatPass()(model)
    RemoveUnusedNodesPass()(model)
    _drop_idle_timestep(model, recipe)
    NameFixPass()(model)
    _describe(model, recipe, options, digest, group)
    return model


def _drop_idle_timestep(model: ir.Model, recipe: Recipe) -> None:
    """Remove the timestep of a generator, which has one and computes nothing from it."""
    if recipe.signature.architecture not in ONE_STEP:
        return
    for value in list(model.graph.inputs):
        if value.name == recipe.signature.timestep.name and not value.uses():
            model.graph.inputs.remove(value)


def _describe(
    model: ir.Model, recipe: Recipe, options: LoweringOptions, digest: str, group: int | None
) -> None:
    model.producer_name = "accuquant"
    model.producer_version = accuquant.__version__
    model.metadata_props.update(
        {
            vocabulary.VERSION_KEY: accuquant.__version__,
            vocabulary.GROUP_EDGES_KEY: json.dumps(list(recipe.groups.edges)),
            vocabulary.LOWERING_KEY: options.lowering,
            vocabulary.PRECISION_KEY: options.precision,
            vocabulary.SIGNATURE_KEY: json.dumps(
                signature_of_graph(model.graph, recipe).to_dict(), sort_keys=True
            ),
            vocabulary.RECIPE_KEY: digest,
        }
    )
    if recipe.facts.method is not None:
        model.metadata_props[vocabulary.CALIBRATION_KEY] = recipe.facts.method
    if group is not None:
        model.metadata_props[vocabulary.GROUP_KEY] = str(group)
