"""How many layers, and how much of the work, of a graph is int8, and why the rest is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from accuquant.graph.constants import constant_weight
from accuquant.graph.patch import has_body
from accuquant.graph.vocabulary import LAYER_KEY, LAYER_KINDS

Shapes = Mapping[str, tuple[int, ...]]

#: Operators of ONNX Runtime's optimizer that hold a convolution or a product inside.
_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "TransposeMatMul": "MatMul"}
_OPAQUE = ("Attention", "MultiHeadAttention", "NhwcConv", "NhwcFusedConv")
_UNFUSE = "give the file as it was before ONNX Runtime's optimizer"


@dataclass(frozen=True)
class Coverage:
    """`int8` of `layers` layers with weights, and `share` of all multiply-accumulates (None: not known).

    `left` maps a reason that nobody chose to how many layers stay float for it.
    """

    int8: int
    layers: int
    share: float | None
    left: Mapping[str, int]

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.1%} of the multiply-accumulates"
        return f"int8: {self.int8} of {self.layers} layers{share}"


def working_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the convolutions and products of a graph, fused ones too."""
    return [node for node in graph if _operator(node) is not None or node.op_type in _OPAQUE]


def shapes_wanted(graph: ir.Graph) -> list[str]:
    """Return the tensors whose shapes `coverage` needs to count multiply-accumulates."""
    values = [v for node in working_nodes(graph) for v in (*node.inputs[:2], node.outputs[0])]
    return list(dict.fromkeys(str(value.name) for value in values if value is not None))


def coverage(graph: ir.Graph, shapes: Shapes | None) -> Coverage:
    """Count what MatchLayersPass has marked in a float graph; `shapes` may be None where nothing ran."""
    nodes = working_nodes(graph)
    int8 = [node for node in nodes if LAYER_KEY in node.metadata_props]
    weighted = [node for node in nodes if LAYER_KEY in node.metadata_props or _has_weight(node)]
    left = Counter(reason for node in weighted if (reason := _reason(node)) is not None)
    left.update(f"{node.op_type} is control flow" for node in graph if has_body(node))
    share = None
    if shapes is not None:
        work = {node: _macs(node, shapes) for node in nodes}
        total = sum(work.values())
        share = sum(work[node] for node in int8) / total if total else None
    return Coverage(len(int8), len(weighted), share, dict(left))


def _operator(node: ir.Node) -> str | None:
    if node.domain == "":
        return node.op_type if node.op_type in LAYER_KINDS else None
    return _FUSED.get(node.op_type)


def _has_weight(node: ir.Node) -> bool:
    """Return whether a node multiplies by a weight: products of two activations are no layers."""
    if node.op_type in _OPAQUE or (_operator(node) or "").startswith("Conv"):
        return True
    return constant_weight(node) is not None


def _reason(node: ir.Node) -> str | None:
    """Return why a layer stays float, None where it is int8 or the placement says so."""
    if LAYER_KEY in node.metadata_props:
        return None
    if node.domain != "":
        return f"{node.op_type} is an operator of {node.domain}, not of ONNX: {_UNFUSE}"
    weight = constant_weight(node)
    if weight is None:
        return f"{node.op_type} with a weight that the graph computes"
    if node.op_type.startswith("Conv") and len(weight.shape) != 4:
        return f"{node.op_type} over {len(weight.shape) - 2} axes, not over images"
    return None


def _macs(node: ir.Node, shapes: Shapes) -> int:
    """Return the multiply-accumulates of a node, 0 where its operator does not say."""
    operator = _operator(node)
    left, right = (
        shapes.get(str(v.name), ()) if v is not None else () for v in (*node.inputs, None, None)[:2]
    )
    output = shapes.get(str(node.outputs[0].name), ())
    if operator is None or not left or not right:
        return 0
    if operator == "Conv":  # weight [O, I / groups, *kernel]
        return math.prod(output) * math.prod(right[1:])
    if operator == "ConvTranspose":  # weight [I, O / groups, *kernel]
        return math.prod(left) * math.prod(right[1:])
    transposed = operator == "Gemm" and node.attributes.get_int("transA", 0) == 1
    inner = left[0] if transposed else left[-1]
    return math.prod(output) * inner
