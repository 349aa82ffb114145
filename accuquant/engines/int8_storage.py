"""Weights stored in 4 bits, for compilers that take int8 ones alone."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx import ModelProto, TensorProto

from accuquant.engines.profile import load_graph
from accuquant.errors import SourceError
from accuquant.graph.packed_levels import unpack_levels

_PACKED = (TensorProto.INT4, TensorProto.UINT4)


def with_int8_weights(model: Path, folder: Path) -> Path:
    """Return `model`, or where it casts 4-bit weights to int8 a copy in `folder` that stores them so.

    TensorRT lets INT4 into DequantizeLinear alone, and would compute such a layer in float. The copy computes
    the same; its weights lie in a file beside it, written one after the other.
    """
    try:
        packed = _has_packed(load_graph(model))
    except SourceError:
        packed = False  # the parser says better what is wrong with the file
    if not packed:
        return model
    opened = ir.load(model)
    if not unpack_levels(opened):
        return model
    copy = folder / model.name
    ir.save(opened, copy, external_data=f"{model.name}_data")
    return copy


def _has_packed(model: ModelProto) -> bool:
    return any(tensor.data_type in _PACKED for tensor in model.graph.initializer)
