"""Find where an exported graph adds a zero-point before a symmetric QDQ pair, and who reads the pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accuquant.runtime.cpu_forms.constants import constant_of, only_reader, scalar_of
from accuquant.runtime.cpu_forms.pairs import Pair, pair_from
from accuquant.runtime.runner import Array


@dataclass(frozen=True)
class ShiftedLayer:
    """A layer behind the pair, and the input of the addition that takes its bias, less what the shift adds.

    `addend` is what is added in step group 0, whose scale is `step`, where no border is near.
    """

    node: Any
    bias: Any
    addend: Array
    step: float


@dataclass(frozen=True)
class ShiftedInput:
    """x -> shift -> [pad] -> pair -> layers, as OpenVINO reads the export.

    `pair` is FakeQuantize -> Convert -> Convert -> Subtract -> Multiply by `scale`.
    """

    shift: Any
    pad: Any | None
    pair: Pair
    zero_point: int
    scale: float
    layers: tuple[ShiftedLayer, ...]


def find_shifted_inputs(model: Any) -> list[ShiftedInput]:
    """Return what of a graph has the exact form that the export writes; everything else is left out."""
    found = (_match(n) for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize")
    return [one for one in found if one is not None]


def weight_sum(layer: Any) -> Array | None:
    """Return a weight's sums over a layer's inputs, float64: [O, kh, kw] of a Convolution, else [O]."""
    weight = constant_of(layer.input_value(1))
    if weight is None:
        return None
    if layer.get_type_name() == "Convolution":
        return np.asarray(weight.sum(axis=1, dtype=np.float64))
    return np.asarray(weight.sum(axis=1 if layer.get_attributes()["transpose_b"] else 0, dtype=np.float64))


def _match(quantize: Any) -> ShiftedInput | None:
    below = quantize.input_value(0).get_node()
    pad = below if below.get_type_name() == "Pad" else None
    shift = pad.input_value(0).get_node() if pad is not None else below
    amount = scalar_of(shift.input_value(1)) if shift.get_type_name() == "Add" else None
    if amount is None or only_reader(shift) is None or (pad is not None and only_reader(pad) is None):
        return None
    if pad is not None and (pad.get_input_size() < 4 or scalar_of(pad.input_value(3)) != amount):
        return None
    pair = pair_from(quantize)
    if pair is None or shift.output(0).get_element_type().get_type_name() != "f32":
        return None
    *_, subtract, restore = pair
    scale = scalar_of(restore.input_value(1))
    if not scale or scalar_of(subtract.input_value(1)) != 0:
        return None
    divide = shift.input_value(0).get_node()
    layers = [_layer(reader, scale, divide) for reader in restore.output(0).get_target_inputs()]
    known = tuple(layer for layer in layers if layer is not None)
    if not known or len(known) < len(layers):
        return None
    return ShiftedInput(shift, pad, pair, round(amount / scale), scale, known)


def _gathered(output: Any) -> Array | None:
    """Return the table of Gather(table, index) where it is a constant, else None."""
    node = output.get_node()
    return constant_of(node.input_value(0)) if node.get_type_name() == "Gather" else None


def _layer(reader: Any, scale: float, divide: Any) -> ShiftedLayer | None:
    node = reader.get_node()
    if reader.get_index() != 0 or node.get_type_name() not in ("Convolution", "MatMul"):
        return None
    if node.get_type_name() == "MatMul" and node.get_attributes()["transpose_a"]:
        return None
    behind, step = _past_ones(only_reader(node)), scale
    if divide.get_type_name() == "Divide":
        factors = _gathered(divide.input_value(1))
        behind = _past_zeros(behind)
        restored = behind is not None and _undoes(behind, divide)
        if factors is None or behind is None or not restored:
            return None
        step, behind = scale * float(factors.reshape(-1)[0]), only_reader(behind.get_node())
    if behind is None or behind.get_node().get_type_name() != "Add":
        return None
    bias = behind.get_node().input(1 - behind.get_index())
    addend = _addend(bias.get_source_output(), node)
    return None if addend is None else ShiftedLayer(node, bias, addend, step)


def _past_ones(reader: Any | None) -> Any | None:
    """Return the reader behind multiplications by one, which OpenVINO writes behind a Gemm."""
    while reader is not None and reader.get_node().get_type_name() == "Multiply":
        node = reader.get_node()
        if scalar_of(node.input_value(1 - reader.get_index())) != 1:
            break
        reader = only_reader(node)
    return reader


def _past_zeros(reader: Any | None) -> Any | None:
    """Return the reader behind an addition of zero, which OpenVINO writes behind a Gemm without a bias."""
    while reader is not None and reader.get_node().get_type_name() == "Add":
        node = reader.get_node()
        if scalar_of(node.input_value(1 - reader.get_index())) != 0:
            break
        reader = only_reader(node)
    return reader


def _undoes(reader: Any, divide: Any) -> bool:
    """Say whether `reader` multiplies by what `divide` divides by."""
    node = reader.get_node()
    if node.get_type_name() != "Multiply":
        return False
    factor, divisor = (
        one.get_node() for one in (node.input_value(1 - reader.get_index()), divide.input_value(1))
    )
    return bool(factor.get_friendly_name() == divisor.get_friendly_name())


def _addend(output: Any, layer: Any) -> Array | None:
    """Return what is added behind `layer` where no border is near, in step group 0, or None."""
    if layer.get_type_name() == "Convolution" and any(pads_of(layer)):
        return _middle_of_table(output)
    constant = constant_of(output)
    if constant is not None:
        return constant
    table = _gathered(output)
    return None if table is None else table[0]


def _middle_of_table(output: Any) -> Array | None:
    """Return the last class of Gather(Gather(table, rows), columns): the pixels that no border touches."""
    columns = output.get_node()
    if columns.get_type_name() != "Gather":
        return None
    table = _gathered(columns.input_value(0))
    return None if table is None or table.ndim != 4 else table[:, :, -1:, -1:]


def pads_of(layer: Any) -> tuple[int, ...]:
    """Return the paddings of a Convolution: all starts, all ends."""
    attributes = layer.get_attributes()
    return (*attributes["pads_begin"], *attributes["pads_end"])
