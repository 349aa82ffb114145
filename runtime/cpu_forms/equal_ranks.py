"""Give the operands of arithmetic on images the images' rank, so that it runs channels-last."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ov

_ARITHMETIC = ("Add", "Divide", "Multiply", "Subtract")
#: Fewer axes have no order of channels to choose.
_IMAGE_RANK = 4


def write_equal_ranks(model: Any) -> int:
    """Reshape the operands of lower rank of an ov.Model of static shapes, in place -> how many.

    Rules (x [N, C, *image] beside an operand of fewer axes, which broadcasts):
    - The operand gets leading axes of one element: the same numbers, and the same result to the last bit.
    - OpenVINO fuses arithmetic into one kernel, which takes channels-last images only where all of its
      operands have one rank (isChannelsFirstApplicable in its Subgraph node). The factor of a step group has
      one axis, a bias three: with either of them the kernel is channels-first, and every convolution around
      it, which is not, costs a reorder before and a reorder behind.
    """
    changed = 0
    reshaped: dict[tuple[str, int, int], Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _ARITHMETIC:
            continue
        rank = len(node.get_output_partial_shape(0))
        if rank < _IMAGE_RANK:
            continue
        for index in range(2):
            source = node.input_value(index)
            missing = rank - len(source.get_partial_shape())
            if not missing:
                continue
            key = (source.get_node().get_name(), source.get_index(), missing)
            if key not in reshaped:
                reshaped[key] = ov.unsqueeze(source, np.arange(missing, dtype=np.int64))
            node.input(index).replace_source_output(reshaped[key].output(0))
            changed += 1
    return changed
