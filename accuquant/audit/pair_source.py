"""What stands before a QuantizeLinear: the nodes that its lowering inserted, and what computes the tensor."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from accuquant.graph.neighbours import input_of, producer
from accuquant.graph.roles import role_of
from accuquant.graph.vocabulary import Role

#: What a pair's lowering puts between the float tensor and Q.
_LOWERING = (Role.CAST, Role.DIVIDE, Role.SHIFT, Role.CLIP, Role.PAD)
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

    lowering: tuple[ir.Node, ...]
    node: ir.Node | None
    others: tuple[ir.Node, ...]
    norm: ir.Node | None

    def lowers_with(self, role: Role) -> bool:
        """Say whether the pair brought along a node of this role."""
        return any(role_of(node) is role for node in self.lowering)


def pair_source(quantize: ir.Node) -> PairSource:
    """Return what stands before `quantize`."""
    lowering: list[ir.Node] = []
    last, node = quantize, producer(quantize)
    while node is not None and role_of(node) in _LOWERING:
        lowering.append(node)
        last, node = node, producer(node)
    value = input_of(last, 0)
    others = tuple(user for user, _ in value.uses() if user is not last) if value is not None else ()
    return PairSource(tuple(lowering), node, others, _norm_before(node))


def _norm_before(node: ir.Node | None) -> ir.Node | None:
    """Return the normalization whose output reaches `node` through pointwise operations only."""
    for _ in range(_REACH):
        if node is None or node.op_type in _NORMS:
            return node
        if node.op_type not in _POINTWISE:
            return None
        node = producer(node)
    return None
