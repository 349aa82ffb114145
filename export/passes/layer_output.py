"""Undo, behind a quantized layer, the factor and the shift that its input got."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.export.passes.activation_scales import ActivationScales
from accuquant.export.passes.border_table import BorderIndex, border_table, has_border_table
from accuquant.export.passes.matmul_bias import added_bias, bias_shape
from accuquant.export.passes.quantize_weights import channel_factors, dequantized_weight, has_shared_scale
from accuquant.graph.constants import constant_array
from accuquant.graph.patch import Patch, computing_dtype_of, dtype_of, take_over
from accuquant.graph.vocabulary import Role
from accuquant.qparams import FloatArray, LayerQParams

_MATRIX_OPS = ("MatMul", "Gemm")


class LayerOutput:
    """Inserts y = node(x) without bias -> [Mul factor] -> Add(bias - zero_point * s * node(ones)).

    `factor` is what the input was divided by in this step group, times the channel's factor where the
    weight has one scale for all channels. What a layer writes in bfloat16 is computed in float32 here.

    node(ones), what a shift of the input by one adds to the output, is one constant for each output
    channel of Linear and of unpadded Conv. For a padded Conv it differs at the borders: a small table
    holds what occurs (`borders` spreads it). For ConvTranspose, and auto_pad, the same op with one input
    channel computes it, for whatever image size comes in.
    """

    def __init__(
        self,
        graph: ir.Graph,
        node: ir.Node,
        layer: LayerQParams,
        scales: ActivationScales,
        borders: BorderIndex,
    ) -> None:
        self.graph = graph
        self.node = node
        self.patch = Patch(graph, f"{layer.name}/output")
        self.scales = scales
        self.borders = borders
        self.stored = dtype_of(node.outputs[0])
        self.dtype = computing_dtype_of(node.outputs[0])
        self.channels = None
        if has_shared_scale(node):
            self.channels = channel_factors(node, layer).astype(self.dtype)
        _check_gemm(node, layer.name)

    def restore(self, zero_point: int, factor: ir.Value | None, index: ir.Value | None) -> None:
        """Insert the nodes; nothing where there is neither a factor nor a zero_point, nor bfloat16."""
        factor = self._with_channels(factor)
        # Behind a MatMul without Casts OpenVINO takes bfloat16 for float32, and refuses its own graph.
        if factor is None and zero_point == 0 and self.stored == self.dtype:
            self._keep_bias_apart()
            return
        bias, last = self._detach_bias()
        uses = list(last.uses())
        core = self.node.outputs[0]
        value = self.patch.cast(core, self.dtype, "Cast")
        if factor is not None:
            value = self.patch.op("Mul", [value, factor], name="Mul", role=Role.RESTORE, like=value)
        addend = self._addend(zero_point, bias, index)
        if addend is not None:
            value = self.patch.op("Add", [value, addend], name="Add", role=Role.BIAS, like=value)
        value = self.patch.cast(value, self.stored, "Stored")
        self.patch.insert_after(self.node)
        take_over(self.graph, last, value, uses)

    def _with_channels(self, factor: ir.Value | None) -> ir.Value | None:
        """Return the factor of the step group times that of each channel [1, O, 1, 1]."""
        if self.channels is None:
            return factor
        channels = self.patch.constant(self.channels.reshape(1, -1, 1, 1), "channels")
        if factor is None:
            return channels
        return self.patch.op("Mul", [channels, factor], name="Factor", role=Role.FACTOR, like=channels)

    def _weight(self) -> FloatArray:
        """Return the float64 weight that the layer computes with, its channels' factors included."""
        weight = dequantized_weight(self.node)
        if self.channels is None:
            return weight
        return np.asarray(weight * self.channels.astype(np.float64).reshape(-1, 1, 1, 1))

    def _keep_bias_apart(self) -> None:
        """Write the bias behind a MatMul in the shape that keeps ONNX Runtime from fusing the two."""
        if self.node.op_type != "MatMul":
            return
        found = added_bias(self.node.outputs[0])
        if found is not None:
            apart = self.patch.constant(found.bias.reshape(bias_shape(self.node)).astype(self.stored), "bias")
            found.add.replace_input_with(found.side, apart)

    def _addend(self, zero_point: int, bias: FloatArray | None, index: ir.Value | None) -> ir.Value | None:
        if zero_point == 0:
            return None if bias is None else self.patch.constant(self._aligned(bias), "bias")
        if has_border_table(self.node):
            return self._spread_table(zero_point, bias)
        if self.node.op_type not in _MATRIX_OPS and _differs_at_borders(self.node):
            return self._border_map(zero_point, bias, index)
        weight = self._weight()
        ones = weight.sum(axis=self._input_axes(weight.ndim))
        shifts = [self._aligned((0 if bias is None else bias) - zero_point * s * ones) for s in self._steps()]
        return self._choose(np.stack(shifts), "shifted_bias", index)

    def _spread_table(self, zero_point: int, bias: FloatArray | None) -> ir.Value:
        """Return bias - zero_point * s * node(ones) as [1, O, H', W'], for one constant scale."""
        (step,) = self._steps()
        table = -zero_point * step * border_table(self.node, self._weight().sum(axis=1))
        if bias is not None:
            table = table + bias.reshape(-1, 1, 1)
        constant = self.patch.constant(table[None].astype(self.dtype), "border_table")
        return self.borders.spread(self.patch, self.node, constant)

    def _border_map(self, zero_point: int, bias: FloatArray | None, index: ir.Value | None) -> ir.Value:
        """Return bias - zero_point * s * node(ones) as [1, O, H', W'], computed in the graph."""
        x = self.node.inputs[0]
        assert x is not None
        size = self.patch.op("Shape", [x], name="Size", start=2)
        one_image = self.patch.constant(np.array([1, 1], np.int64), "one_image")
        shape = self.patch.op("Concat", [one_image, size], name="Shape", axis=0)
        one = self.patch.constant(np.ones((), self.dtype), "one")
        ones = self.patch.op("Expand", [one, shape], name="Ones")
        kernel = self.patch.constant(
            _channel_sum(self.node, self._weight()).astype(self.dtype), "border_kernel"
        )
        attributes = {key: attr.value for key, attr in self.node.attributes.items() if key != "group"}
        response = self.patch.op(self.node.op_type, [ones, kernel], name="Response", **attributes)
        shift = self._choose(-zero_point * self._steps(), "shift", index)
        border = self.patch.op("Mul", [response, shift], name="BorderMap", role=Role.SHIFTED_BIAS)
        if bias is None:
            return border
        aligned = self.patch.constant(self._aligned(bias), "bias")
        return self.patch.op("Add", [border, aligned], name="BiasMap", role=Role.SHIFTED_BIAS)

    def _steps(self) -> FloatArray:
        """Return the scale [G] of each step group as the graph's float type rounds it."""
        reference = float(np.asarray(self.scales.reference, self.stored))
        if not self.scales.is_grouped:
            return np.array([reference])
        return self.scales.factors(self.dtype).astype(np.float64) * reference

    def _choose(self, table: FloatArray, name: str, index: ir.Value | None) -> ir.Value:
        """Return table[group] of a table [G, ...], or its only row."""
        table = table.astype(self.dtype)
        if len(table) == 1:
            return self.patch.constant(table[0], name)
        assert index is not None
        rows = self.patch.constant(table, name)
        return self.patch.op("Gather", [rows, index], name=name.title(), role=Role.SHIFTED_BIAS, axis=0)

    def _aligned(self, vector: FloatArray) -> FloatArray:
        """Reshape [O] so that it broadcasts against the output."""
        shaped = vector if self.node.op_type in _MATRIX_OPS else vector.reshape(1, -1, 1, 1)
        return np.asarray(shaped, self.dtype)

    def _input_axes(self, ndim: int) -> tuple[int, ...]:
        if self.node.op_type == "MatMul":
            return (0,)
        if self.node.op_type == "Gemm":
            return (1,) if self.node.attributes.get_int("transB", 0) else (0,)
        return tuple(range(1, ndim))

    def _detach_bias(self) -> tuple[FloatArray | None, ir.Value]:
        """Take the bias off -> (bias [O] or None, the value that held the output with the bias)."""
        output = self.node.outputs[0]
        if len(self.node.inputs) > 2 and self.node.inputs[2] is not None:
            bias = constant_array(self.node.inputs[2])
            if bias is None:
                raise _unsupported(self.patch.prefix, "a bias that the graph computes", "a constant bias")
            self.node.resize_inputs(2)
            return bias.reshape(-1), output
        found = added_bias(output) if self.node.op_type == "MatMul" else None
        return (None, output) if found is None else (found.bias, found.add.outputs[0])


def _channel_sum(node: ir.Node, weight: FloatArray) -> FloatArray:
    """Return the kernel that gives node(ones) from one input channel: [O, 1, kh, kw] for Conv."""
    if node.op_type == "Conv":
        return np.asarray(weight.sum(axis=1, keepdims=True))
    groups = node.attributes.get_int("group", 1) or 1
    per_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).sum(axis=1)
    return np.asarray(per_group.reshape(1, -1, *weight.shape[2:]))


def take_pads(node: ir.Node) -> tuple[int, ...]:
    """Set a Conv's pads to zero and return them as Pad takes them (all starts, all ends), or ()."""
    pads = tuple(node.attributes.get_ints("pads", ()))
    if node.op_type != "Conv" or not any(pads):
        return ()
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    half = len(pads) // 2
    return (0, 0, *pads[:half], 0, 0, *pads[half:])


def _differs_at_borders(node: ir.Node) -> bool:
    if node.op_type == "ConvTranspose":
        return True
    return node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _check_gemm(node: ir.Node, name: str) -> None:
    if node.op_type != "Gemm":
        return
    get = node.attributes
    if get.get_int("transA", 0) or get.get_float("alpha", 1.0) != 1.0 or get.get_float("beta", 1.0) != 1.0:
        raise _unsupported(name, "a Gemm with alpha, beta or transA", "alpha = beta = 1 and transA = 0")


def _unsupported(subject: str, got: str, expected: str) -> ExportError:
    return ExportError(
        f"layer '{subject}'",
        got=got,
        expected=expected,
        remedy="Leave this layer out of the recipe, or export the network with torch.onnx.export",
    )
