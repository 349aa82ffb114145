"""Which half types, and which 8-bit floats, a GPU computes, and which a model needs."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, TensorProto

from accuquant.engines.profile import load_graph
from accuquant.engines.target import TARGETS, Target
from accuquant.errors import EngineError

#: The first compute capability with bfloat16: Ampere.
_FIRST_BFLOAT16 = Target(8, 0)
#: The first with FP8: Ada.
_FIRST_FP8 = Target(8, 9)
_FP8_TYPES = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)


def check_half_types(model: Path, target: Target) -> None:
    """Raise EngineError where `model` computes in bfloat16 or FP8 and `target` cannot.

    SourceError if it is unreadable.
    """
    if target >= _FIRST_FP8:
        return
    graph = load_graph(model)
    if any(tensor.data_type in _FP8_TYPES for tensor in graph.graph.initializer):
        raise EngineError(
            f"model '{model}'",
            got=f"FP8, which {target} ({TARGETS.get(target, 'an older GPU')}) does not compute",
            expected=f"a target from {_FIRST_FP8} on ({TARGETS[_FIRST_FP8]}), or another format",
            remedy=f"Calibrate with --format int8 for {target}",
        )
    if target >= _FIRST_BFLOAT16 or not _has_bfloat16(graph):
        return
    raise EngineError(
        f"model '{model}'",
        got=f"bfloat16, which {target} (Turing) does not compute",
        expected=f"a target from {_FIRST_BFLOAT16} on, or another precision",
        remedy=f"Export with --precision fp16 for {target}",
    )


def _has_bfloat16(model: ModelProto) -> bool:
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        return True
    attributes = (a for node in model.graph.node if node.op_type == "Cast" for a in node.attribute)
    return any(a.name == "to" and a.i == TensorProto.BFLOAT16 for a in attributes)
