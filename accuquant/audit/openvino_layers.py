"""The layers of a model that OpenVINO compiled, from its runtime graph and its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from accuquant.audit.engine_layers import EngineDescription, EngineLayer, EngineTensor
from accuquant.runtime.executed_nodes import ExecutedNode, ExecutedTensor, with_lost_names

#: OpenVINO's element types -> TensorRT's, which the audit speaks.
_DTYPES = {
    "f32": "Float",
    "f16": "Half",
    "bf16": "BFloat16",
    "i64": "Int64",
    "i32": "Int32",
    "i8": "Int8",
    "u8": "UInt8",
    "boolean": "Bool",
    "i4": "Int4",
    "u4": "Int4",
}
_PORTS = frozenset({"Const", "Input", "Output", "Parameter", "Result"})


def read_openvino_layers(
    nodes: tuple[ExecutedNode, ...],
    milliseconds: Mapping[str, float],
    followers: Mapping[str, tuple[str, ...]],
) -> EngineDescription:
    """Return the kernels among `nodes`: those that a run executed, whose `milliseconds` are known by name.

    What is computed in place (a Reshape) or once (of constants alone) is none. `followers` maps each layer of
    the ONNX graph to the nodes that finish its output.
    """
    layers = [
        EngineLayer(
            name=node.name,
            kind=node.kind,
            inputs=_tensors([tensor for tensor in node.inputs if not tensor.constant]),
            constants=_tensors([tensor for tensor in node.inputs if tensor.constant]),
            outputs=_tensors(node.outputs),
            onnx_nodes=node.onnx_nodes,
            library="openvino",
            implementation=node.implementation,
            milliseconds=milliseconds[node.name],
        )
        for node in with_lost_names(nodes, followers)
        if node.name in milliseconds and node.kind not in _PORTS and not node.constant
    ]
    return EngineDescription(tuple(layers))


def times_of_calls(means: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of each kernel over all calls but the first.

    `means` are what OpenVINO's counters say after each call: the mean over all calls since the model was
    compiled. The first call is slower, and would stay in every later mean. What call k took is the difference
    of two sums, so that it is known to k of the counters' microseconds.
    """
    taken: dict[str, list[float]] = {}
    for call, (before, after) in enumerate(pairwise(means), start=2):
        for name, mean in after.items():
            if name in before:
                taken.setdefault(name, []).append(max(0.0, mean * call - before[name] * (call - 1)))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _tensors(tensors: Sequence[ExecutedTensor]) -> tuple[EngineTensor, ...]:
    """Return the tensors whose type is known; empty ones stand for operands that are left out."""
    return tuple(
        EngineTensor(tensor.writer, tensor.shape, _DTYPES[tensor.precision])
        for tensor in tensors
        if tensor.precision in _DTYPES and 0 not in tensor.shape
    )
