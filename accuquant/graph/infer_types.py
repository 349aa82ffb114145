"""Fill in the element types and shapes that a graph does not declare."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def infer_types(model: ir.Model) -> None:
    """Infer types and shapes, where a node that is used writes a tensor without a type.

    Not strict: shapes that contradict each other, as exporters write them down, and unknown operators
    leave a gap where they are, and do not end the inference.
    """
    if not any(_is_untyped(node) for graph in model.graphs() for node in graph):
        return
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a failure would be logged with its traceback
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.setLevel(level)


def untyped_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that write a tensor of unknown type which a node or the caller reads."""
    return [node for node in graph if _is_untyped(node)]


def _is_untyped(node: ir.Node) -> bool:
    return any(out.dtype is None and (out.uses() or out.is_graph_output()) for out in node.outputs)
