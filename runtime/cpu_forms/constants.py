"""Constants of an OpenVINO graph, and the nodes around a node."""

from __future__ import annotations

from typing import Any

import numpy as np

from accuquant.runtime.runner import Array


def constant_of(output: Any) -> Array | None:
    """Return what an output of constants, converted, reshaped or multiplied, always is, or None."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return _values(node)
    if kind not in ("Convert", "Reshape", "Multiply", "Transpose", "Unsqueeze"):
        return None
    first = constant_of(node.input_value(0))
    if first is None:
        return None
    if kind == "Convert":
        dtype = _dtype(output)
        return None if dtype is None else first.astype(dtype)
    if kind == "Multiply":
        second = constant_of(node.input_value(1))
        return None if second is None else np.asarray(first * second)
    if kind == "Transpose":
        order = constant_of(node.input_value(1))
        return None if order is None else np.transpose(first, order.tolist() or None)
    return first.reshape(tuple(output.get_shape()))


def scalar_of(output: Any) -> float | None:
    """Return the number that an output always is, or None where it is not one constant number."""
    values = constant_of(output)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def only_reader(node: Any) -> Any | None:
    """Return the input that reads the first output of `node`, None where none or several do.

    Those that ask for its shape alone do not count: it is known by now.
    """
    readers = [
        reader
        for reader in node.output(0).get_target_inputs()
        if reader.get_node().get_type_name() != "ShapeOf"
    ]
    return readers[0] if len(readers) == 1 else None


def replace(old: Any, new: Any) -> None:
    """Let the node `new` take the place and the name of the node `old`."""
    readers = list(old.output(0).get_target_inputs())
    new.set_friendly_name(old.get_friendly_name())
    for reader in readers:
        reader.replace_source_output(new.output(0))


def _values(node: Any) -> Array | None:
    if _dtype(node.output(0)) is None:
        return None
    values: Array = node.data
    return values.reshape(tuple(node.output(0).get_shape()))


def _dtype(output: Any) -> np.dtype[Any] | None:
    """Return numpy's type of an output, None where numpy has none (bfloat16, int4)."""
    name = output.get_element_type().get_type_name()
    known = {"f32": "float32", "f16": "float16", "f64": "float64", "i8": "int8", "u8": "uint8"}
    known |= {"i32": "int32", "i64": "int64", "boolean": "bool"}
    return np.dtype(known[name]) if name in known else None
