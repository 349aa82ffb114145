"""Seeded damage to a small .onnx: to its bytes, and to what its graph says."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import onnx
from foreign_graphs import tiny_network
from onnx import AttributeProto, helper

#: Numbers that break arithmetic, allocations and signs.
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 99, 2**16, 10**8, 2**31, 2**40, 2**62, 2**63 - 1)
TEXTS = (
    "",
    "sample",
    "y",
    "h",
    "a/../b",
    "\0",
    "\x1b[2J",
    "x" * 5000,
    "Conv",
    "Loop",
    "Cast",
    "Resize",
    "Sigmoid",
)

Change = Callable[[onnx.ModelProto, random.Random], None]


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node)


def _drop_input(model: onnx.ModelProto, rng: random.Random) -> None:
    del _node(model, rng).input[rng.randrange(2) :]


def _swap_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    others = [name for other in model.graph.node for name in (*other.input, *other.output)]
    node.input[rng.randrange(len(node.input))] = rng.choice([*others, *TEXTS[:5]])


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    rng.choice([*graph.input, *graph.output, *graph.initializer, *graph.node]).name = rng.choice(TEXTS)


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(
        ("Conv", "Gemm", "MatMul", "Loop", "If", "Cast", "Reshape", "Expand", "Nope", "")
    )


def _domain(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).domain = rng.choice(("com.microsoft", "ai.onnx.ml", "nowhere"))


def _extent(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    shape = value.type.tensor_type.shape
    rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)


def _rank(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    if rng.random() < 0.5:
        value.type.tensor_type.shape.dim.add().dim_value = rng.choice(NUMBERS)
    else:
        value.type.tensor_type.ClearField("shape")


def _type(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.choice((0, 1, 2, 3, 7, 8, 9, 10, 11, 16, 17, 21, 23, 99))
    if rng.random() < 0.5:
        rng.choice(model.graph.initializer).data_type = kind
    else:
        rng.choice([*model.graph.input, *model.graph.output]).type.tensor_type.elem_type = kind


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = rng.choice(model.graph.initializer).dims
    dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)


def _values(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.raw_data = rng.choice(
        (b"", tensor.raw_data[:-1], tensor.raw_data * 2, b"\xff" * len(tensor.raw_data))
    )


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    model.opset_import[0].version = rng.choice((*NUMBERS, 9, 10, 13, 17, 24))


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.attribute and rng.random() < 0.5:
        found = rng.choice(node.attribute)
        del found.ints[:]
        found.ints.extend(rng.choice(NUMBERS) for _ in range(rng.randrange(6)))
        if rng.random() < 0.3:
            found.type = rng.choice(AttributeProto.AttributeType.values())
        return
    name = rng.choice(
        ("pads", "strides", "dilations", "group", "kernel_shape", "auto_pad", "axis", "to", "mode")
    )
    value = rng.choice((rng.choice(NUMBERS), [rng.choice(NUMBERS) for _ in range(4)], rng.choice(TEXTS), 0.5))
    node.attribute.append(helper.make_attribute(name, value))


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        if rng.random() < 0.8:
            tensor.external_data.add(
                key=key, value=rng.choice((*TEXTS, "m.onnx", "../m.onnx", "-1", "9" * 40))
            )


def _reorder(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _repeat(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.node.append(_node(model, rng))


def _clear(model: onnx.ModelProto, rng: random.Random) -> None:
    part = rng.choice(("node", "input", "output", "initializer"))
    field = getattr(model.graph, part)
    del field[rng.randrange(len(field)) :]


CHANGES: tuple[Change, ...] = (
    _drop_input,
    _swap_input,
    _rename,
    _operator,
    _domain,
    _extent,
    _rank,
    _type,
    _dims,
    _values,
    _opset,
    _attribute,
    _external,
    _reorder,
    _repeat,
    _clear,
)


def mutated(seed: int) -> bytes:
    """Return the bytes of a damaged model; the same for the same seed."""
    rng = random.Random(seed)
    model = tiny_network(opset=rng.choice((13, 21, 21, 21)))
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            with suppress(IndexError, ValueError):  # an earlier change left nothing to choose from
                rng.choice(CHANGES)(model, rng)
        return bytes(model.SerializeToString())
    content = bytearray(model.SerializeToString())
    if rng.random() < 0.4:
        return bytes(content[: rng.randrange(len(content))])
    for _ in range(rng.choice((1, 2, 8))):
        position = rng.randrange(600) if rng.random() < 0.7 else rng.randrange(len(content))
        content[position] ^= 1 << rng.randrange(8)
    return bytes(content)
