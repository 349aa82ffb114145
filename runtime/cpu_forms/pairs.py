"""QDQ pairs as OpenVINO reads them: found behind a node, and made again for another input."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ov

from accuquant.runtime.cpu_forms.constants import constant_of, only_reader

#: FakeQuantize -> Convert -> Convert -> Subtract -> Multiply
Pair = tuple[Any, Any, Any, Any, Any]


def pair_from(quantize: Any) -> Pair | None:
    """Return quantize -> Convert -> Convert -> Subtract -> Multiply, None where other nodes stand there."""
    pair = [quantize]
    for kind in ("Convert", "Convert", "Subtract", "Multiply"):
        reader = only_reader(pair[-1])
        if reader is None or reader.get_index() != 0 or reader.get_node().get_type_name() != kind:
            return None
        pair.append(reader.get_node())
    return pair[0], pair[1], pair[2], pair[3], pair[4]


def pair_reading(x: Any, pair: Pair, zero_point: int, *, amount: float = 0.0) -> Any:
    """Return a pair of the same levels as `pair` that reads `x` and has `zero_point`.

    Its limits are `amount` lower. The nodes take the names of those of `pair`.
    """
    quantize, levels, *_, restore = pair
    limits = [constant_of(quantize.input_value(index)) for index in (1, 2)]
    rounded = ov.fake_quantize(
        x,
        *(
            ov.constant((limit - np.float32(amount)).astype(np.float32))
            for limit in limits
            if limit is not None
        ),
        quantize.input_value(3),
        quantize.input_value(4),
        quantize.get_attributes()["levels"],
    )
    integer = ov.convert(rounded, "i8")
    integer.set_friendly_name(levels.get_friendly_name())
    zero = ov.convert(ov.constant(np.array(zero_point, np.int8)), "f32")
    value = ov.multiply(ov.subtract(ov.convert(integer, "f32"), zero), restore.input_value(1))
    value.set_friendly_name(restore.get_friendly_name())
    return value
