"""What the half types can hold: one function for every scale that a graph stores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.qparams import FloatArray

#: The smallest and the largest positive value of each half type.
LIMITS = {
    ir.DataType.FLOAT16: (2.0**-24, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-133, (2 - 2.0**-7) * 2.0**127),
}


def representable(scale: FloatArray, half: ir.DataType | None) -> FloatArray:
    """Return positive scales as close to `scale` as `half` can hold them without becoming zero or infinite.

    None stands for float32, which holds every scale of a recipe. Within the limits nothing is rounded here.
    """
    return scale if half is None else np.clip(scale, *LIMITS[half])
