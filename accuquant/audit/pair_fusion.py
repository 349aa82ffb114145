"""For each QDQ pair of a graph: what became of it in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from accuquant.audit.engine_layers import EngineDescription, EngineLayer
from accuquant.audit.kernel_kind import kernel_kind
from accuquant.audit.pair_reason import Reason, why_alone, why_float, why_split
from accuquant.audit.pair_source import pair_source
from accuquant.export.lint.check_graph import Violation
from accuquant.graph.constants import is_constant
from accuquant.graph.neighbours import input_of, label, producer, readers, select
from accuquant.graph.vocabulary import LAYER_KEY, LAYER_OPS

Outcome = Literal["fused", "split", "own kernel", "float", "unknown"]
#: What each outcome means, for people.
OUTCOMES: dict[Outcome, str] = {
    "fused": "Q joined the kernel that computes its input, and its reader runs in int8 or FP8",
    "split": "the reader runs in int8 or FP8, but what Q could have joined takes more than one kernel",
    "own kernel": "the reader runs in int8 or FP8, and a kernel that does nothing else writes its input",
    "float": "its reader runs in float: the pair only costs",
    "unknown": "the engine names no layer for it",
}
_WORK_KINDS = ("convolution", "gemm", "attention")


@dataclass(frozen=True)
class PairFusion:
    """What became of one QDQ pair on the way to one reader.

    `pair` is the QuantizeLinear's name, `reader` the node that reads the dequantized tensor, `layer` the
    recipe's name of that node where the graph holds it. `kernels` compute Q. `reason` and `remedy` are
    empty for a fused pair.
    """

    pair: str
    reader: str
    layer: str
    outcome: Outcome
    kernels: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


def pair_fusions(
    graph: ir.Graph, engine: EngineDescription, violations: Sequence[Violation]
) -> tuple[PairFusion, ...]:
    """Return one PairFusion for each activation's QDQ pair and each node that reads it, in graph order.

    Of a concatenation whose parts have pairs, the parts' pairs count; the one behind it repeats their levels.
    `violations` are what the linter says of the same graph: they explain layers that stayed in float.
    """
    operators = operators_of(graph)
    found = []
    for quantize in select(graph, "QuantizeLinear"):
        if is_constant(input_of(quantize, 0)) or _repeats(quantize):
            continue
        for reader in _readers(quantize):
            found.append(_fusion(engine, operators, violations, quantize, reader))
    return tuple(found)


def operators_of(graph: ir.Graph) -> dict[str, str]:
    """Return the operator of each node, by name."""
    return {label(node): node.op_type for node in graph}


def layer_name(node: ir.Node) -> str:
    """Return the recipe's name of the layer that `node` computes, or the node's own."""
    return node.metadata_props.get(LAYER_KEY) or label(node)


def work_layer(engine: EngineDescription, node: str) -> EngineLayer | None:
    """Return the engine's layer that does the multiply-accumulates of `node`, or None.

    Other layers name the node too: those that add its bias or rewrite its output.
    """
    main = [layer for layer in engine.layers_of(node) if kernel_kind(layer, {}) in _WORK_KINDS]
    return main[0] if main else None


def _fusion(
    engine: EngineDescription,
    operators: dict[str, str],
    violations: Sequence[Violation],
    quantize: ir.Node,
    reader: ir.Node,
) -> PairFusion:
    pair, name = label(quantize), label(reader)
    work = work_layer(engine, name)
    writers = engine.layers_of(pair)

    def found(outcome: Outcome, reason: Reason) -> PairFusion:
        kernels = tuple(writer.name for writer in writers)
        return PairFusion(pair, name, layer_name(reader), outcome, kernels, reason.text, reason.remedy)

    if reader.op_type not in LAYER_OPS or (work is not None and not work.reads_levels):
        return found("float", why_float(quantize, reader, work, violations))
    if work is None or not writers:
        missing = name if work is None else pair
        return found("unknown", Reason(f"no layer of the engine names '{missing}'", "Look at --layers"))
    source = pair_source(quantize)
    kinds = [kernel_kind(writer, operators) for writer in writers]
    if set(kinds) <= {"quantize", "reformat"}:
        return found("own kernel", why_alone(source, writers))
    nodes = {node for writer in writers for node in writer.onnx_nodes}
    if len(writers) > 1 or (source.norm is not None and label(source.norm) not in nodes):
        return found("split", why_split(source, writers))
    return found("fused", Reason("", ""))


def _repeats(quantize: ir.Node) -> bool:
    """Say whether `quantize` reads a concatenation of dequantized tensors."""
    concat = producer(quantize)
    if concat is None or concat.op_type != "Concat":
        return False
    parts = [producer(concat, index) for index in range(len(concat.inputs))]
    return all(part is not None and part.op_type == "DequantizeLinear" for part in parts)


def _readers(quantize: ir.Node) -> list[ir.Node]:
    """Return the nodes that read what `quantize` writes, through its DequantizeLinear."""
    found = []
    for read in readers(quantize):
        if read.node.op_type != "DequantizeLinear":
            found.append(read.node)
            continue
        for inner in readers(read.node):
            repeats = [again.node for again in readers(inner.node) if _repeats(again.node)]
            if repeats:
                found.extend(reader for again in repeats for reader in _readers(again))
            elif inner.node.op_type != "Shape":
                found.append(inner.node)
    return found
