"""Which nodes of an ONNX graph are calibrated layers: those whose two operands come from QDQ pairs."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from accuquant.errors import AccuQuantError
from accuquant.graph.skeleton import read_skeleton
from accuquant.graph.vocabulary import LAYER_KEY, LAYER_OPS, ROLE_KEY

#: What scales an output or adds a bias.
_FINISHING = frozenset({"Add", "Cast", "Mul"})


@dataclass(frozen=True)
class CalibratedLayer:
    """A convolution or matrix product that reads dequantized tensors.

    `node` is its name (what it writes, where it has none), `layer` the recipe's name of it where the graph
    holds that, else the node's. `zero_point` says that its activation's pair has a zero-point inside, `fp8`
    that it rounds to an 8-bit float. `followers` are the nodes that finish its output, see find_followers.
    """

    node: str
    layer: str
    zero_point: bool
    followers: tuple[str, ...] = ()
    fp8: bool = False


def calibrated_layers(
    path: str | os.PathLike[str], *, error: type[AccuQuantError]
) -> tuple[CalibratedLayer, ...]:
    """Return the calibrated layers of the .onnx at `path`, in graph order; weights are not read.

    Raises `error` for a file that is no ONNX model.
    """
    return find_calibrated(read_skeleton(path, error=error))


def find_calibrated(model: onnx.ModelProto) -> tuple[CalibratedLayer, ...]:
    """Return the calibrated layers of `model`; an operand without a pair of its own counts as float."""
    graph = model.graph
    writers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    followers = find_followers(model)
    found = []
    for node in graph.node:
        if node.op_type not in LAYER_OPS:
            continue
        pairs = [writers.get(name) for name in node.input[:2]]
        activation, weight = pairs if len(pairs) == 2 else (None, None)
        if activation is None or weight is None:
            continue
        if {activation.op_type, weight.op_type} != {"DequantizeLinear"} or activation.input[0] in constants:
            continue
        name = _name(node)
        layer = next((entry.value for entry in node.metadata_props if entry.key == LAYER_KEY), name)
        zero = constants.get(activation.input[2]) if len(activation.input) > 2 else None
        fp8 = zero is not None and zero.data_type == onnx.TensorProto.FLOAT8E4M3FN
        shifted = not fp8 and _is_shifted(zero)
        found.append(CalibratedLayer(name, layer, shifted, followers[name], fp8))
    return tuple(found)


def find_followers(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Return for each convolution and matrix product the nodes that scale its output or add its bias.

    An engine may compute them in one kernel, and name that after the last of them alone, or after the output
    of the graph that they write: its name is among them too.
    """
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def after(node: onnx.NodeProto) -> tuple[str, ...]:
        chain: list[str] = []
        while len(readers[node.output[0]]) == 1:
            (reader,) = readers[node.output[0]]
            finishes = _has_role(reader) or any(name in known for name in reader.input)
            if reader.op_type not in _FINISHING or not finishes:
                break
            chain.append(_name(reader))
            node = reader
        return tuple(chain) if node.output[0] not in outputs else (*chain, node.output[0])

    return {_name(node): after(node) for node in graph.node if node.op_type in LAYER_OPS}


def _name(node: onnx.NodeProto) -> str:
    return node.name or str(node.output[0])


def _has_role(node: onnx.NodeProto) -> bool:
    return any(entry.key == ROLE_KEY for entry in node.metadata_props)


def _is_shifted(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None or not (tensor.raw_data or tensor.int32_data):  # left out, or in another file
        return False
    middle = 128 if tensor.data_type == onnx.TensorProto.UINT8 else 0  # u8 around 128 is i8 around 0
    return bool(np.any(numpy_helper.to_array(tensor) != middle))
