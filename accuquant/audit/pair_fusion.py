"""For each QDQ pair of a graph: what became of it in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from accuquant.audit.engine_layers import EngineDescription, EngineLayer
from accuquant.audit.graph_work import WORK_OPS
from accuquant.audit.kernel_kind import kernel_kind
from accuquant.audit.pair_reason import Reason, why_alone, why_float, why_split
from accuquant.audit.pair_source import pair_source
from accuquant.export.lint.check_graph import GraphView, Violation, input_name, label

Outcome = Literal["fused", "split", "own kernel", "float", "unknown"]
#: What each outcome means, for people.
OUTCOMES: dict[Outcome, str] = {
    "fused": "Q joined the kernel that computes its input, and its reader runs in int8",
    "split": "the reader runs in int8, but what Q could have joined takes more than one kernel",
    "own kernel": "the reader runs in int8, and a kernel that does nothing else writes its input",
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
    graph: GraphView, engine: EngineDescription, violations: Sequence[Violation]
) -> tuple[PairFusion, ...]:
    """Return one PairFusion for each activation's QDQ pair and each node that reads it, in graph order.

    Of a concatenation whose parts have pairs, the parts' pairs count; the one behind it repeats their levels.
    `violations` are what the linter says of the same graph: they explain layers that stayed in float.
    """
    operators = operators_of(graph)
    found = []
    for quantize in graph.select("QuantizeLinear"):
        if graph.is_constant(input_name(quantize, 0)) or _repeats(graph, quantize):
            continue
        for reader in _readers(graph, quantize):
            found.append(_fusion(graph, engine, operators, violations, quantize, reader))
    return tuple(found)


def operators_of(graph: GraphView) -> dict[str, str]:
    """Return the operator of each node, by name."""
    return {label(node): node.op_type for node in graph.nodes}


def layer_name(node: onnx.NodeProto) -> str:
    """Return the recipe's name of the layer that `node` computes, or the node's own."""
    names = [entry.value for entry in node.metadata_props if entry.key == "accuquant.layer"]
    return names[0] if names else label(node)


def work_layer(engine: EngineDescription, node: str) -> EngineLayer | None:
    """Return the engine's layer that does the multiply-accumulates of `node`, or None.

    Other layers name the node too: those that add its bias or rewrite its output.
    """
    main = [layer for layer in engine.layers_of(node) if kernel_kind(layer, {}) in _WORK_KINDS]
    return main[0] if main else None


def _fusion(
    graph: GraphView,
    engine: EngineDescription,
    operators: dict[str, str],
    violations: Sequence[Violation],
    quantize: onnx.NodeProto,
    reader: onnx.NodeProto,
) -> PairFusion:
    pair, name = label(quantize), label(reader)
    work = work_layer(engine, name)
    writers = engine.layers_of(pair)

    def found(outcome: Outcome, reason: Reason) -> PairFusion:
        kernels = tuple(writer.name for writer in writers)
        return PairFusion(pair, name, layer_name(reader), outcome, kernels, reason.text, reason.remedy)

    if reader.op_type not in WORK_OPS or (work is not None and not work.reads_int8):
        return found("float", why_float(graph, quantize, reader, work, violations))
    if work is None or not writers:
        missing = name if work is None else pair
        return found("unknown", Reason(f"no layer of the engine names '{missing}'", "Look at --layers"))
    source = pair_source(graph, quantize)
    kinds = [kernel_kind(writer, operators) for writer in writers]
    if set(kinds) <= {"quantize", "reformat"}:
        return found("own kernel", why_alone(source, writers))
    nodes = {node for writer in writers for node in writer.onnx_nodes}
    if len(writers) > 1 or (source.norm is not None and label(source.norm) not in nodes):
        return found("split", why_split(source, writers))
    return found("fused", Reason("", ""))


def _repeats(graph: GraphView, quantize: onnx.NodeProto) -> bool:
    """Say whether `quantize` reads a concatenation of dequantized tensors."""
    concat = graph.producer(quantize)
    if concat is None or concat.op_type != "Concat":
        return False
    parts = [graph.producer(concat, index) for index in range(len(concat.input))]
    return all(part is not None and part.op_type == "DequantizeLinear" for part in parts)


def _readers(graph: GraphView, quantize: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes that read what `quantize` writes, through its DequantizeLinear."""
    found = []
    for read in graph.readers(quantize):
        if read.node.op_type != "DequantizeLinear":
            found.append(read.node)
            continue
        for inner in graph.readers(read.node):
            repeats = [again.node for again in graph.readers(inner.node) if _repeats(graph, again.node)]
            if repeats:
                found.extend(reader for again in repeats for reader in _readers(graph, again))
            elif inner.node.op_type != "Shape":
                found.append(inner.node)
    return found
