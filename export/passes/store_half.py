"""Store the weights of layers that stay float in 16 bits, where they would dominate the file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.graph.patch import add_tensor
from accuquant.graph.vocabulary import LAYER_KEY, LAYER_OPS

#: Type -> the largest value that it holds.
_LARGEST = {
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: float.fromhex("0x1.fep127"),
}
#: With "auto": float layers that take less than this keep every bit.
AUTO_ABOVE = 100_000_000


class StoreHalfPass(ir.passes.InPlacePass):
    """Replace float32 weights of float layers by float16 or bfloat16 ones behind a Cast to float32.

    Rules:
    - Weights of Conv, ConvTranspose, Gemm and MatMul that no recipe layer reads. Engines fold the Cast
      when they load the graph, so the layer computes in float32; its weights lose what the type does not
      hold: 2^-12 of each value in float16, 2^-9 in bfloat16, against 2^-8 of an int8 level. Weights that
      were trained in bfloat16 lose nothing in it.
    - A weight that the type cannot hold (in float16, above 65504) stays as it is. Biases and norms stay.
    - Nothing below `above` bytes of such weights in all: small files keep every bit.
    - Values are converted when the file is written.
    """

    def __init__(self, half: ir.DataType = ir.DataType.FLOAT16, *, above: int = 0) -> None:
        self.half, self.above = half, above

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        weights = _float_weights(model.graph)
        if sum(weight.const_value.nbytes for weight in weights if weight.const_value) <= self.above:
            return ir.passes.PassResult(model, modified=False)
        changed = [weight for weight in weights if _store_half(model.graph, weight, self.half)]
        return ir.passes.PassResult(model, modified=bool(changed))


def _float_weights(graph: ir.Graph) -> list[ir.Value]:
    """Return the float32 initializers that float layers read, maybe behind a Transpose, once each."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if node.op_type not in LAYER_OPS or LAYER_KEY in node.metadata_props or len(node.inputs) < 2:
            continue
        value = node.inputs[1]
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Transpose":
            value = producer.inputs[0]
        if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
            found[value] = None
    return list(found)


def _store_half(graph: ir.Graph, weight: ir.Value, dtype: ir.DataType) -> bool:
    tensor = weight.const_value
    assert tensor is not None
    if np.abs(tensor.numpy()).max(initial=0) > _LARGEST[dtype]:
        return False

    def compute() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(dtype.numpy()))

    lazy = ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()))
    half = add_tensor(graph, lazy, f"{weight.name}_half")
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{weight.name}/Cast")
    cast.outputs[0].name = f"{weight.name}_float"
    cast.outputs[0].type, cast.outputs[0].shape = weight.type, weight.shape
    first = next(node for node in graph if weight in node.inputs)
    graph.insert_before(first, cast)
    for user, position in list(weight.uses()):
        user.replace_input_with(position, cast.outputs[0])
    del graph.initializers[str(weight.name)]
    return True
