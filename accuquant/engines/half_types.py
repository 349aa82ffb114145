"""Which half types a GPU computes, and which a model needs."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, TensorProto

from accuquant.engines.profile import load_graph
from accuquant.engines.target import Target
from accuquant.errors import EngineError

#: The first compute capability with bfloat16: Ampere.
_FIRST_BFLOAT16 = Target(8, 0)


def check_half_types(model: Path, target: Target) -> None:
    """Raise EngineError where `model` computes in bfloat16 and `target` cannot; SourceError if unreadable."""
    if target >= _FIRST_BFLOAT16 or not _has_bfloat16(load_graph(model)):
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
