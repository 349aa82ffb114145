"""What stands before a QuantizeLinear: the nodes that its lowering inserted, and what computes the tensor."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from accuquant.export.lint.check_graph import GraphView, input_name, label

#: Operators that a pair's lowering puts between the float tensor and Q, under the pair's own name.
_LOWERING = ("Add", "Clip", "Div", "Mul", "Pad")
#: Operators that move data and compute nothing.
MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Resize", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization"})
_POINTWISE = frozenset({"Add", "Cast", "Mul", "Sigmoid", "Gelu", "Relu", "Reshape", "Transpose"})
#: How far a normalization may stand before Q: SiLU is two nodes, a norm may be reshaped and scaled.
_REACH = 8


@dataclass(frozen=True)
class PairSource:
    """Where the tensor that Q reads comes from.

    `lowering` are the nodes that the pair brought along (a factor, a shift, a padding), `node` computes
    the float tensor (None for an input of the graph), `others` read that tensor too, `norm` is the
    normalization behind whose pointwise operations it stands, or None.
    """

    lowering: tuple[onnx.NodeProto, ...]
    node: onnx.NodeProto | None
    others: tuple[onnx.NodeProto, ...]
    norm: onnx.NodeProto | None

    def lowers_with(self, *operators: str) -> bool:
        """Say whether the pair brought along a node of one of these operators."""
        return any(node.op_type in operators for node in self.lowering)


def pair_source(graph: GraphView, quantize: onnx.NodeProto) -> PairSource:
    """Return what stands before `quantize`."""
    prefix = label(quantize).rpartition("/")[0]
    lowering: list[onnx.NodeProto] = []
    last, node = quantize, graph.producer(quantize)
    while node is not None and prefix and _belongs(node, prefix):
        lowering.append(node)
        last, node = node, graph.producer(node)
    reads = graph.reads.get(input_name(last, 0), ())
    others = tuple(read.node for read in reads if label(read.node) != label(last))
    return PairSource(tuple(lowering), node, others, _norm_before(graph, node))


def _belongs(node: onnx.NodeProto, prefix: str) -> bool:
    return node.op_type in _LOWERING and label(node).startswith(f"{prefix}/")


def _norm_before(graph: GraphView, node: onnx.NodeProto | None) -> onnx.NodeProto | None:
    """Return the normalization whose output reaches `node` through pointwise operations only."""
    for _ in range(_REACH):
        if node is None or node.op_type in _NORMS:
            return node
        if node.op_type not in _POINTWISE:
            return None
        node = graph.producer(node, 0)
    return None
