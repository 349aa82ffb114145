"""Lint an ONNX file for what TensorRT's int8 refuses, crashes on, or runs slowly."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from accuquant.export.lint import check_levels, check_norms, check_placement, check_scales, check_weight_axis
from accuquant.export.lint.check_graph import GraphView, Violation, graph_views
from accuquant.export.read.as_written import read_as_written
from accuquant.graph.neighbours import select
from accuquant.graph.quantized_family import REMEDY, quantized_family

__all__ = ["Violation", "check_model"]

#: Each rule takes a GraphView and yields its violations.
RULES = (
    *check_levels.RULES,
    *check_scales.RULES,
    *check_weight_axis.RULES,
    *check_placement.RULES,
    *check_norms.RULES,
)


def check_model(path: Path) -> list[Violation]:
    """Return every violation of TensorRT's int8 rules in an .onnx file, none for a file that follows them.

    A file in another format of quantization has one violation, which names its operators. Weights are not
    read, so files with gigabytes of external data take no more memory than their nodes. Raises SourceError
    for a file that is missing, damaged, invalid, or whose external data lies outside its folder.
    """
    path = Path(path)
    return find_violations(read_as_written(path), path)


def find_violations(model: ir.Model, path: Path) -> list[Violation]:
    """Return every violation in a model that read_as_written read from `path`."""
    if (family := quantized_family(node.op_type for node in model.graph)) is not None:
        return [Violation("other-quantization", model.graph.name or "graph", family, REMEDY)]
    views = list(graph_views(model, path))
    found = [*_not_quantized(model, views)]
    for view in views:
        for rule in RULES:
            found.extend(rule(view))
    return found


def _not_quantized(model: ir.Model, views: list[GraphView]) -> list[Violation]:
    """Report a model without any pair: since TensorRT 11 only Q/DQ in the file makes an engine int8."""
    if any(True for view in views for _ in select(view.graph, "QuantizeLinear", "DequantizeLinear")):
        return []
    return [
        Violation(
            "not-quantized",
            model.graph.name or "graph",
            "no QuantizeLinear or DequantizeLinear in the whole graph: the engine will run in float",
            "Quantize it with `accuquant export`",
        )
    ]
