"""The lowering "hybrid": one scale for all step groups where a constant keeps a kernel and costs little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from accuquant.export.passes.layer_match import MatchLayersPass, matched_layers
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe

#: Largest ratio between a layer's scales that one scale may stand for. Rounding to the largest of them
#: multiplies the layer's noise in the other groups by at most this.
MAX_SPREAD = 1.7
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization"})
#: Nodes between a normalization and the layer: SiLU (two), and what a decomposed norm scales and adds.
_REACH = 8


def share_scales(model: ir.Model, recipe: Recipe, *, max_spread: float = MAX_SPREAD) -> Recipe:
    """Return `recipe` with one scale for all step groups in the layers where that keeps a fusion.

    TensorRT makes one kernel of GroupNorm, SiLU and Q where the scale is a constant, and two where it
    depends on the step. A layer behind them gets the largest of its scales if they differ by at most
    `max_spread`; every other layer keeps its scales, because there a factor costs no kernel. The nodes of
    `model` (float) are marked with their layers. Raises ExportError where a layer has no node.
    """
    MatchLayersPass(recipe.layers)(model)
    shared = {
        layer.name: layer.with_activation_scale(np.full_like(layer.activation_scale, _largest(layer)))
        for node, layer in matched_layers(model.graph, recipe.layers)
        if _spread(layer) <= max_spread and _follows_norm_and_silu(node)
    }
    return replace(recipe, layers={**recipe.layers, **shared})


def _largest(layer: LayerQParams) -> np.float32:
    largest: np.float32 = layer.activation_scale.max()
    return largest


def _spread(layer: LayerQParams) -> float:
    return float(layer.activation_scale.max() / layer.activation_scale.min())


def _follows_norm_and_silu(node: ir.Node) -> bool:
    """Return whether the input of `node` is x * Sigmoid(x) of a normalization."""
    value = node.inputs[0]
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "Mul":
        return False
    producers = [operand.producer() if operand is not None else None for operand in product.inputs]
    sigmoid = next((p for p in producers if p is not None and p.op_type == "Sigmoid"), None)
    value = sigmoid.inputs[0] if sigmoid is not None else None
    for _ in range(_REACH):
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type in _NORMS:
            return producer is not None
        value = producer.inputs[0] if producer.op_type in ("Add", "Mul", "Reshape", "Cast") else None
    return False
