"""Read an .onnx as it is written, to judge it: float or quantized, of any opset, nothing converted."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from accuquant._util.real_model import real_model
from accuquant.errors import SourceError
from accuquant.export.read.onnx_source import read_proto
from accuquant.graph.infer_types import infer_types

_INVALID = (onnx.checker.ValidationError, ir.serde.SerdeError, KeyError, TypeError, ValueError, RuntimeError)


def read_as_written(path: Path) -> ir.Model:
    """Return the model in an .onnx file with its local functions inlined and missing types inferred.

    External data is not read, so files with gigabytes of it take no more memory than their nodes. Raises
    SourceError for a file that is missing, damaged, invalid, or whose external data lies outside its folder.
    """
    path = Path(path)
    proto = read_proto(path)
    path = real_model(path)
    try:
        onnx.checker.check_model(str(path))
        model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        if model.functions:
            InlinePass()(model)
    except _INVALID as fault:
        reason = str(fault).strip().splitlines()
        raise SourceError(
            f"'{path}'",
            got=f"an invalid graph ({reason[0] if reason else type(fault).__name__})",
            expected="a graph that onnx.checker accepts",
            remedy="Export the model again",
        ) from fault
    infer_types(model)
    return model
