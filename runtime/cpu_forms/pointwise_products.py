"""Write int8 products of images' rows as convolutions of one tap, which some processors compute faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset13 as ov

from accuquant.runtime.cpu_forms.constants import constant_of, replace, scalar_of
from accuquant.runtime.cpu_forms.pairs import Pair, pair_from, pair_reading
from accuquant.runtime.runner import Array


@dataclass(frozen=True)
class PairedProduct:
    """A MatMul of [N, T, C] behind a QDQ pair, by int8 `levels` [O, C] times `scale` [O]."""

    node: Any
    levels: Array
    scale: Array


def find_paired_products(model: Any) -> list[tuple[Pair, list[PairedProduct]]]:
    """Return the pairs of one scale that products of three axes read, each with these products."""
    found = []
    for node in model.get_ordered_ops():
        pair = pair_from(node) if node.get_type_name() == "FakeQuantize" else None
        if pair is None or not _has_one_scale(pair):
            continue
        readers = pair[-1].output(0).get_target_inputs()
        products = [product for reader in readers if (product := _product(reader)) is not None]
        if products:
            found.append((pair, products))
    return found


def write_products_as_convolutions(model: Any) -> int:
    """Rewrite the int8 products of an ov.Model of static shapes, in place -> how many.

    Rules (x [N, T, C], weight [O, C]):
    - x -> pair -> MatMul becomes x -> Transpose [N, C, T] -> pair -> Convolution, weight [O, C, 1] ->
      Transpose [N, T, O]. A convolution keeps its channels last in memory, so neither transposition moves
      anything there.
    - The transposition stands in front of the pair: behind it, OpenVINO 2026.4 computed something else.
    - Where the processor has no VNNI, OpenVINO's int8 product (jit_gemm_i8) is as fast as its float one, and
      its int8 convolution twice as fast.
    """
    written = 0
    for pair, products in find_paired_products(model):
        zero_point = scalar_of(pair[3].input_value(1))
        assert zero_point is not None, "a pair of one scale has one zero-point"
        columns = ov.transpose(pair[0].input_value(0), _numbers([0, 2, 1]))
        restored = pair_reading(columns, pair, int(zero_point))
        for product in products:
            _write(product, restored)
        written += len(products)
    return written


def _write(product: PairedProduct, columns: Any) -> None:
    name = product.node.get_friendly_name()
    levels = ov.constant(np.ascontiguousarray(product.levels)[..., None])
    weight = ov.multiply(ov.convert(levels, "f32"), ov.constant(product.scale.reshape(-1, 1, 1)))
    convolution = ov.convolution(columns, weight, [1], [0], [0], [1])
    rows = ov.transpose(convolution, _numbers([0, 2, 1]))
    replace(product.node, rows)
    rows.set_friendly_name(f"{name}/rows")  # the layer is found by its name
    convolution.set_friendly_name(name)


def _has_one_scale(pair: Pair) -> bool:
    quantize, _, _, subtract, restore = pair
    numbers = [quantize.input_value(index) for index in range(1, 5)]
    return all(
        scalar_of(one) is not None for one in (*numbers, subtract.input_value(1), restore.input_value(1))
    )


def _product(reader: Any) -> PairedProduct | None:
    node = reader.get_node()
    if reader.get_index() != 0 or node.get_type_name() != "MatMul":
        return None
    attributes = node.get_attributes()
    if attributes["transpose_a"] or len(reader.get_partial_shape()) != 3:
        return None
    restored = node.input_value(1).get_node()
    if restored.get_type_name() != "Multiply":
        return None
    levels, scale = _levels(restored.input_value(0).get_node()), constant_of(restored.input_value(1))
    if levels is None or scale is None or levels.ndim != 2:
        return None
    if scale.size > 1 and scale.shape[-1 if attributes["transpose_b"] else 0] != 1:
        return None
    if not attributes["transpose_b"]:
        levels = levels.T
    return PairedProduct(node, levels, np.full(len(levels), scale.reshape(-1), np.float32))


def _levels(node: Any) -> Array | None:
    """Return the int8 constant under Convert -> [Subtract 0], None where something else stands there."""
    if node.get_type_name() == "Subtract":
        zero = constant_of(node.input_value(1))
        if zero is None or zero.any():
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Convert":
        return None
    source = node.input_value(0)
    return constant_of(source) if source.get_element_type().get_type_name() == "i8" else None


def _numbers(values: list[int]) -> Any:
    return ov.constant(np.array(values, np.int64))
