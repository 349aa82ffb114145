"""Weights stored as compilers know them: 4-bit levels as int8, rows that are gathered in float16."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx import ModelProto, TensorProto

from accuquant.engines.profile import load_graph
from accuquant.errors import SourceError
from accuquant.graph.gathered_levels import widen_tables
from accuquant.graph.packed_levels import unpack_levels

_PACKED = (TensorProto.INT4, TensorProto.UINT4)


def with_known_storage(model: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return `model`, or a copy in `folder` with weights stored as TensorRT takes them, and what changed.

    TensorRT lets INT4 into DequantizeLinear alone, and would compute such a layer in float; of a table of
    int8 levels it gathers no rows. The copy computes the same; its weights lie in a file beside it, written
    one after the other.
    """
    try:
        changes = _needs_change(load_graph(model))
    except SourceError:
        changes = False  # the parser says better what is wrong with the file
    if not changes:
        return model, ()
    opened = ir.load(model)
    done = []
    if unpack_levels(opened):
        done.append("Weights in 4 bits are compiled as int8: TensorRT would compute with them in float")
    if widen_tables(opened):
        done.append("Tables of embeddings in 8 bits are compiled as float16: TensorRT gathers no int8 rows")
    if not done:
        return model, ()
    copy = folder / model.name
    ir.save(opened, copy, external_data=f"{model.name}_data")
    return copy, tuple(done)


def _needs_change(model: ModelProto) -> bool:
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    if any(kind in _PACKED for kind in kinds.values()):
        return True
    gathered = (node.input[0] for node in model.graph.node if node.op_type == "Gather")
    return any(kinds.get(name) == TensorProto.INT8 for name in gathered)
