"""Store weights of at most 4 bits in 4 bits: half the bytes of int8, and the same levels."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.graph.patch import Patch, add_tensor
from accuquant.graph.roles import role_of
from accuquant.graph.vocabulary import LAYER_KEY, Role
from accuquant.qparams import LayerQParams

#: The bits of ONNX's INT4, -8 to 7.
BITS = 4


class StoreInt4Pass(ir.passes.InPlacePass):
    """Replace int8 levels of weights with at most 4 bits by packed INT4 ones behind a Cast to int8.

    Rules:
    - INT4 -> Cast -> int8 levels -> DequantizeLinear -> the layer: the levels and the scale are those of
      int8 storage, so every engine computes the same. Engines fold the Cast when they load the graph.
    - Weights of more bits stay as they are. Levels are packed when the file is written.
    Raises ExportError where no weight has so few bits.
    """

    def __init__(self, layers: Mapping[str, LayerQParams]) -> None:
        self.layers = layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        done: set[ir.Node] = set()
        for node in list(model.graph):
            layer = self.layers.get(node.metadata_props.get(LAYER_KEY, ""))
            dequantize = node.inputs[1].producer() if layer and node.inputs[1] is not None else None
            if layer is None or dequantize is None or role_of(dequantize) is not Role.WEIGHT:
                continue
            if layer.weight_bits <= BITS and dequantize not in done:
                _pack(model.graph, dequantize)
                done.add(dequantize)
        if not done:
            raise _too_wide(self.layers)
        return ir.passes.PassResult(model, modified=True)


def _pack(graph: ir.Graph, dequantize: ir.Node) -> None:
    levels = dequantize.inputs[0]
    assert levels is not None
    tensor = levels.const_value
    assert tensor is not None

    def compute() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(ir.DataType.INT4.numpy()))

    shape = ir.Shape(tensor.shape.numpy())
    name = str(levels.name)
    packed = add_tensor(graph, ir.LazyTensor(compute, dtype=ir.DataType.INT4, shape=shape), f"{name}_int4")
    patch = Patch(graph, name)
    widened = patch.op("Cast", [packed], name="Cast", role=Role.WIDEN, to=ir.DataType.INT8)
    widened.shape = shape
    patch.insert_before(dequantize)
    dequantize.replace_input_with(0, widened)
    del graph.initializers[name]


def _too_wide(layers: Mapping[str, LayerQParams]) -> ExportError:
    bits = sorted({layer.weight_bits for layer in layers.values()})
    return ExportError(
        "--weight-storage int4",
        got=f"a recipe with weights of {' and '.join(map(str, bits))} bits",
        expected=f"weights of at most {BITS} bits",
        remedy="Calibrate with --weight-bits 4, or leave --weight-storage out",
    )
