"""Tell by its operators how a graph was quantized already, which nobody can do twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_DYNAMIC = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
)
_WEIGHT_ONLY = frozenset({"GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulNBits"})
_INTEGER = frozenset({"QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "QOrderedMatMul"})
_PAIRS = frozenset({"DequantizeLinear", "QuantizeLinear"})
#: What is to be done with each of them.
REMEDY = "Give the float file that it was made from to `accuquant export`"


def quantized_family(operators: Iterable[str]) -> str | None:
    """Return how a graph of these operators is quantized, in words that name them, or None if it is not.

    None too where all it has is QDQ pairs (`pairs_in` counts those), which are what TensorRT reads.
    """
    counts = Counter(operators)
    integer = _INTEGER.union(name for name in counts if name.startswith("QLinear"))
    for words, family in (
        ("quantized dynamically, scales computed at every call", _DYNAMIC),
        (
            "quantized in ONNX Runtime's QOperator format",
            integer,
        ),
        ("quantized in its weights alone", _WEIGHT_ONLY),
    ):
        found = [f"{counts[name]} {name}" for name in sorted(family) if counts[name]]
        if found:
            return f"a graph {words} ({', '.join(found)})"
    return None


def pairs_in(operators: Iterable[str]) -> int:
    """Return how many of the operators are QuantizeLinear or DequantizeLinear."""
    return sum(operator in _PAIRS for operator in operators)
