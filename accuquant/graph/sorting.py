"""Bring the nodes of a graph into an order in which each reads what others wrote before it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from accuquant.errors import last_line


def sort_nodes(model: onnx.ModelProto) -> None:
    """Sort the nodes of the main graph topologically, in place, where they are not sorted.

    ONNX asks for it and engines do not: ONNX Runtime's own convert_float_to_float16 writes its Casts last.
    Nodes that are in order keep it. Raises ValueError where nodes wait for each other.
    """
    graph = model.graph
    if _is_sorted(graph):
        return
    import onnx_ir as ir  # brings sympy, 37 MB that no engine needs for the usual file, which is in order

    # Only names decide, and a copy without attributes and weights has them all.
    written = {name for node in graph.node for name in node.output if name}
    bare = onnx.GraphProto(name="order")
    for number, node in enumerate(graph.node):
        bare.node.add(
            op_type="Node",
            name=str(number),
            input=sorted(written.intersection(reads(node))),
            output=node.output,
        )
    try:
        ordered = ir.serde.deserialize_graph(bare)
        ordered.sort()
    except Exception as fault:  # a cycle, or a tensor that two nodes write
        raise ValueError(f"nodes that cannot be sorted: {last_line(fault)}") from fault
    nodes = [
        onnx.NodeProto.FromString(graph.node[int(node.name or 0)].SerializeToString()) for node in ordered
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, what the bodies inside it read from around them included."""
    yield from node.input
    for attribute in node.attribute:
        for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            own.update(name for inner in body.node for name in inner.output)
            yield from (name for inner in body.node for name in reads(inner) if name not in own)


def _is_sorted(graph: onnx.GraphProto) -> bool:
    waiting = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if any(name in waiting for name in reads(node)):
            return False
        waiting.difference_update(node.output)
    return True
