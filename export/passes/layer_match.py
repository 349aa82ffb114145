"""Find the graph node of each recipe layer by the content of its weight."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.graph.constants import ConstantWeight, constant_weight
from accuquant.graph.vocabulary import LAYER_KEY, LAYER_KINDS
from accuquant.qparams import LayerQParams, fingerprint

_NAME_METADATA = ("namespace", "pkg.torch.onnx.name_scopes")


class MatchLayersPass(ir.passes.InPlacePass):
    """Write the layer's name into the metadata of each node that computes a recipe layer.

    Rules:
    - Conv, ConvTranspose, and Gemm or MatMul with a constant right operand are candidates. The
      constant may be an initializer or a Constant node, behind Identity, Cast or Transpose.
    - A node is the layer whose weight has the same kind, shape and fingerprint (torch's layout).
    - Where several layers share one weight, the name in the node decides; layers that are alike in
      everything need not be told apart.
    - Several nodes may read one layer's weight (a module that is called twice).
    - A node that is marked already keeps its layer.
    Raises ExportError where a layer has no node, or a shared weight cannot be told apart.
    """

    def __init__(self, layers: Mapping[str, LayerQParams]) -> None:
        self.layers = layers
        self._by_content: dict[tuple[str, str], list[LayerQParams]] = defaultdict(list)
        for layer in layers.values():
            self._by_content[layer.kind, layer.fingerprint].append(layer)
        self._shapes = {(layer.kind, layer.weight_shape) for layer in layers.values()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        found: set[str] = set()
        for node in model.graph:
            layer = self.layers.get(node.metadata_props.get(LAYER_KEY, "")) or self._layer_of(node)
            if layer is not None:
                node.metadata_props[LAYER_KEY] = layer.name
                found.add(layer.name)
        missing = [name for name in self.layers if name not in found and not self._has_alike(name, found)]
        if missing:
            layer = self.layers[missing[0]]
            if self._is_rounded(model.graph, layer):
                raise _rounded(layer)
            raise _no_node(missing, layer, len(self.layers))
        return ir.passes.PassResult(model, modified=bool(found))

    def _has_alike(self, name: str, found: Container[str]) -> bool:
        """Return whether a layer that was found has the weight and the qparams of layer `name`."""
        layer = self.layers[name]
        others = self._by_content[layer.kind, layer.fingerprint]
        return any(other.name in found and _all_alike((layer, other)) for other in others)

    def _is_rounded(self, graph: ir.Graph, layer: LayerQParams) -> bool:
        """Return whether the graph has weights of a layer's shape, all of which bfloat16 could hold."""
        weights = [constant_weight(node) for node in graph if LAYER_KINDS.get(node.op_type) == layer.kind]
        alike = [
            weight.load() for weight in weights if weight is not None and weight.shape == layer.weight_shape
        ]
        return bool(alike) and all(map(_is_bfloat16, alike))

    def _layer_of(self, node: ir.Node) -> LayerQParams | None:
        kind = LAYER_KINDS.get(node.op_type)
        weight = constant_weight(node) if kind and node.domain == "" else None
        if kind is None or weight is None or (kind, weight.shape) not in self._shapes:
            return None
        layers = self._by_content.get((kind, fingerprint(weight.load())), [])
        if len(layers) > 1:
            return _by_name(node, weight, layers)
        return layers[0] if layers else None


def matched_layers(graph: ir.Graph, layers: Mapping[str, LayerQParams]) -> list[tuple[ir.Node, LayerQParams]]:
    """Return the nodes that MatchLayersPass marked, with their layers, in graph order."""
    marked = [node for node in graph if LAYER_KEY in node.metadata_props]
    return [(node, layers[node.metadata_props[LAYER_KEY]]) for node in marked]


def _by_name(node: ir.Node, weight: ConstantWeight, layers: list[LayerQParams]) -> LayerQParams:
    scopes = [node.metadata_props[key] for key in _NAME_METADATA if key in node.metadata_props]
    for text in (*scopes, node.name or "", weight.initializer):
        named = [layer for layer in layers if _mentions(text, layer.name)]
        if named:
            return max(named, key=lambda layer: len(layer.name))
    if _all_alike(layers):
        return layers[0]
    raise ExportError(
        f"node '{node.name}'",
        got=f"a weight that {len(layers)} layers share: {', '.join(layer.name for layer in layers[:4])}",
        expected="a name that tells them apart, because their qparams differ",
        remedy="Export the ONNX with its module names, or pass the pipeline folder instead",
    )


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(^|[./]){re.escape(name)}($|[./:])", text.replace("/", ".")) is not None


def _all_alike(layers: Iterable[LayerQParams]) -> bool:
    first, *others = layers
    return all(
        np.array_equal(first.activation_scale, other.activation_scale)
        and np.array_equal(first.weight_scale, other.weight_scale)
        and (first.zero_point, first.format) == (other.zero_point, other.format)
        and (first.weight_bits, first.activation_bits) == (other.weight_bits, other.activation_bits)
        and _same(first.weight_levels, other.weight_levels)
        and _same(first.bias_correction, other.bias_correction)
        for other in others
    )


def _same(one: npt.NDArray[Any] | None, other: npt.NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _is_bfloat16(weight: npt.NDArray[Any]) -> bool:
    """Return whether bfloat16 holds every value: float32 with its lower half zero."""
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    return not np.any(bits & 0xFFFF)


def _rounded(layer: LayerQParams) -> ExportError:
    return ExportError(
        f"layer '{layer.name}'",
        got="a graph whose weights were rounded to bfloat16",
        expected="the weights that were calibrated, which float32 and float16 hold and bfloat16 does not",
        remedy="Export the network in float32 or float16; or save the pipeline with its weights in bfloat16, "
        "and calibrate that",
    )


def _no_node(missing: list[str], layer: LayerQParams, total: int) -> ExportError:
    others = f" (and {len(missing) - 1} more of {total} layers)" if len(missing) > 1 else ""
    return ExportError(
        f"layer '{layer.name}'",
        got=f"no node of the graph that reads its weight{others}",
        expected=f"a {layer.kind} with the calibrated weight {list(layer.weight_shape)}",
        remedy="Export the checkpoint that the recipe was calibrated from, or calibrate this model again",
    )
