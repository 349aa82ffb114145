"""Constants of a graph: what a value always is, and the weight that a node reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from accuquant.qparams import FloatArray

#: Operators that keep a constant constant; engines fold them when they build.
_FOLDABLE = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class ConstantWeight:
    """A weight that a node reads: its shape and its values in torch's layout, loaded when asked."""

    shape: tuple[int, ...]
    load: Callable[[], FloatArray]
    initializer: str


def constant_weight(node: ir.Node) -> ConstantWeight | None:
    """Return the constant that is input 1 of `node`, seen in torch's layout, or None."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    resolved = _resolve(value) if value is not None else None
    if resolved is None:
        return None
    tensor, perm, name = resolved
    if reads_transposed(node):
        if len(perm) != 2:
            return None
        perm = (perm[1], perm[0])
    shape = tensor.shape.numpy()

    def load() -> FloatArray:
        return np.transpose(np.asarray(tensor.numpy()), perm)

    return ConstantWeight(tuple(shape[axis] for axis in perm), load, name)


def constant_array(value: ir.Value) -> FloatArray | None:
    """Return what `value` always is, following Identity, Cast and Transpose, or None."""
    resolved = _resolve(value)
    return None if resolved is None else np.transpose(np.asarray(resolved[0].numpy()), resolved[1])


def is_constant(value: ir.Value | None) -> bool:
    """Say whether `value` is an initializer, a Constant, or one of those reshaped, cast or quantized."""
    while value is not None and ir.convenience.get_const_tensor(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _FOLDABLE:
            return False
        value = producer.inputs[0]
    return value is not None


def reads_transposed(node: ir.Node) -> bool:
    """Return whether `node` reads a Linear weight as [in, out], the transpose of torch's [out, in]."""
    if node.op_type == "MatMul":
        return True
    return node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)


def _resolve(value: ir.Value) -> tuple[ir.TensorProtocol, tuple[int, ...], str] | None:
    """Follow `value` up to a constant tensor -> (tensor, permutation on the way, name)."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor, tuple(range(len(tensor.shape))), value.name or ""
    producer = value.producer()
    if producer is None or producer.op_type not in ("Identity", "Cast", "Transpose"):
        return None
    source = producer.inputs[0]
    resolved = _resolve(source) if source is not None else None
    if resolved is None or producer.op_type != "Transpose":
        return resolved
    tensor, perm, name = resolved
    order = producer.attributes.get_ints("perm") or range(len(perm))[::-1]
    return tensor, tuple(perm[axis] for axis in order), name
