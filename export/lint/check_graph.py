"""What the linter's rules see of a graph, and what they say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.errors import SourceError
from accuquant.graph.neighbours import input_of

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Violation:
    """A node that breaks one of TensorRT's int8 rules, and what to do about it."""

    rule: str
    node: str
    message: str
    remedy: str


@dataclass(frozen=True)
class GraphView:
    """A graph or the body of an If, Loop or Scan; a body's nodes also read the tensors around it.

    Tensors may lie in external files beside `path`; only `values` reads them, one at a time.
    """

    path: Path
    opset: int
    graph: ir.Graph

    def values(self, value: ir.Value | None) -> FloatArray | None:
        """Read a small constant as float64, None where it is not one. Raises SourceError if it is damaged."""
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is None or tensor is None:
            return None
        try:
            return np.asarray(tensor.numpy(), np.float64)
        except (OSError, TypeError, ValueError) as fault:
            raise SourceError(
                f"'{self.path}', tensor '{value.name}'",
                got=f"{type(fault).__name__}: {fault}",
                expected=f"{list(tensor.shape)} elements of type {type_name(tensor.dtype)}",
                remedy="The file is damaged or incomplete: export or copy it again",
            ) from fault

    def scale(self, node: ir.Node) -> FloatArray | None:
        """Return the constant scale of a QuantizeLinear or DequantizeLinear, None where it is computed."""
        return self.values(input_of(node, 1))


def type_name(element_type: ir.DataType) -> str:
    """Return the ONNX name of an element type, in lower case."""
    return element_type.name.lower()


def graph_views(model: ir.Model, path: Path) -> Iterator[GraphView]:
    """Yield the model's graph and the bodies inside it, outermost first."""
    opset = max((model.opset_imports.get(domain) or 0 for domain in ("", "ai.onnx")), default=0)
    for graph in model.graphs():
        yield GraphView(path, opset, graph)
