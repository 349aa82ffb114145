"""Put a QDQ pair at the input of each matched layer, and undo its shift and factor at the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.export.passes.activation_scales import ActivationScales, check_representable, scales_of
from accuquant.export.passes.border_table import BorderIndex, has_border_table
from accuquant.export.passes.layer_match import matched_layers
from accuquant.export.passes.layer_output import LayerOutput, take_pads
from accuquant.export.passes.step_group_index import step_group_index
from accuquant.graph.packed_levels import LEVEL_TYPES
from accuquant.graph.patch import Patch, add_constant, computing_dtype_of, dtype_of
from accuquant.graph.vocabulary import Role
from accuquant.groups import StepGroups
from accuquant.qparams import LayerQParams, level_bounds


@dataclass(frozen=True)
class _Input:
    """A quantized activation: the output of its QDQ pair, and the factor that was divided out."""

    value: ir.Value
    factor: ir.Value | None


class QuantizeActivationsPass(ir.passes.InPlacePass):
    """Quantize the input of each matched layer; outputs and biases stay float.

    Rules (s: scale, z: zero_point, r = s_g / reference where the scale depends on the step group):
    - x -> [Div r] -> [Add z * reference] -> [Clip below 8 bits] -> [Pad] -> Q -> DQ -> layer -> [Mul r]
      -> + bias
    - The pair is symmetric with a constant scale: what TensorRT, OpenVINO and ONNX Runtime all run.
    - Levels have the type of the layer's format, which their zero-point names. Those of FP8 need no Clip: Q
      itself saturates.
      `affine="zero_point"` writes z into the pair instead of adding it, for engines that take it.
    - Behind a shift, zeros in the padding of a Conv mean -z * reference. With a constant scale and stride 1
      the output is corrected, by a table of what the shift adds at and off the borders: nothing stands
      between the shift and Q, so TensorRT fuses both with what computes x. Otherwise the input is padded
      with z * reference before Q, and the Conv no longer pads.
    - Layers that read the same tensor with the same qparams share one pair.
    - `group=None` derives the group from the timestep input, once; layers whose scale is the same in
      all groups get no factor. `group=g` writes that group's scales as constants.
    - Scales have the type of the tensor that they quantize. A bfloat16 tensor is quantized in float32, by a
      scale that bfloat16 holds: DQ writes bfloat16.
    Raises ExportError where the graph has no timestep input or a scale does not fit the precision.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerQParams],
        groups: StepGroups,
        *,
        group: int | None = None,
        affine: str = "shift",
        timestep: str = "timestep",
        timestep_divisor: float = 1.0,
    ) -> None:
        self.layers = layers
        self.groups = groups
        self.group = group
        self.affine = affine
        self.timestep = timestep
        self.timestep_divisor = timestep_divisor

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules to `model`, in place."""
        graph = model.graph
        matches = matched_layers(graph, self.layers)
        index = None
        if self.group is None and any(layer.is_grouped for _, layer in matches):
            index = step_group_index(graph, self.groups, self.timestep_divisor, name=self.timestep)
        shared: dict[tuple[object, ...], _Input] = {}
        borders = BorderIndex()
        for node, layer in matches:
            source = node.inputs[0]
            assert source is not None
            scales = scales_of(layer, self.group)
            shift = layer.zero_point if self.affine == "shift" else 0
            by_table = has_border_table(node) and not scales.is_grouped
            pads = take_pads(node) if shift and not by_table else ()
            key = (
                *(source, layer.format, layer.zero_point, layer.activation_bits),
                *(scales.scales.tobytes(), pads),
            )
            if key not in shared:
                shared[key] = self._quantize(graph, node, layer, scales, index, pads)
            quantized = shared[key]
            node.replace_input_with(0, quantized.value)
            LayerOutput(graph, node, layer, scales, borders).restore(shift, quantized.factor, index)
        return ir.passes.PassResult(model, modified=bool(matches))

    def _quantize(
        self,
        graph: ir.Graph,
        node: ir.Node,
        layer: LayerQParams,
        scales: ActivationScales,
        index: ir.Value | None,
        pads: tuple[int, ...],
    ) -> _Input:
        patch = Patch(graph, f"{layer.name}/input")
        x = node.inputs[0]
        assert x is not None
        dtype = computing_dtype_of(x)
        stored = np.asarray(scales.reference, dtype_of(x))
        check_representable(layer, stored)
        scale = stored.astype(dtype)
        x = patch.cast(x, dtype, "Cast")
        factor = None
        if scales.is_grouped:
            assert index is not None
            factors = patch.constant(scales.factors(dtype), "factors")
            factor = patch.op("Gather", [factors, index], name="Factor", role=Role.FACTOR, axis=0)
            x = patch.op("Div", [x, factor], name="Div", role=Role.DIVIDE, like=x)
        if layer.zero_point and self.affine == "shift":
            shift = patch.constant((layer.zero_point * scale).astype(dtype), "shift")
            x = patch.op("Add", [x, shift], name="Add", role=Role.SHIFT, like=x)
        x = self._clip(patch, x, layer, scale)
        if pads:
            amounts = patch.constant(np.array(pads, np.int64), "pads")
            x = patch.op("Pad", [x, amounts, shift], name="Pad", role=Role.PAD, mode="constant")
            x.type = ir.TensorType(ir.DataType.from_numpy(dtype))
        step, zero = patch.constant(scale, "scale"), self._zero_point(graph, layer)
        levels = patch.op(
            "QuantizeLinear", [x, step, zero], name="QuantizeLinear", role=Role.QUANTIZE, like=x
        )
        levels.type = ir.TensorType(LEVEL_TYPES[layer.format])
        if stored.dtype != dtype:
            step = patch.constant(stored, "stored_scale")
        value = patch.op(
            "DequantizeLinear", [levels, step, zero], name="DequantizeLinear", role=Role.DEQUANTIZE, like=x
        )
        value.type = ir.TensorType(ir.DataType.from_numpy(stored.dtype))
        patch.insert_before(node)
        return _Input(value, factor)

    def _clip(self, patch: Patch, x: ir.Value, layer: LayerQParams, scale: npt.NDArray[Any]) -> ir.Value:
        """Clip to the levels of a grid that is narrower than int8, which Q itself would not."""
        if layer.activation_bits == 8:
            return x
        inside = layer.zero_point if self.affine == "zero_point" else 0
        limits = [
            patch.constant(((level - inside) * scale).astype(scale.dtype), name)
            for level, name in zip(level_bounds(layer.activation_bits), ("low", "high"), strict=True)
        ]
        return patch.op("Clip", [x, *limits], name="Clip", role=Role.CLIP, like=x)

    def _zero_point(self, graph: ir.Graph, layer: LayerQParams) -> ir.Value:
        value = layer.zero_point if self.affine == "zero_point" else 0
        kind = LEVEL_TYPES[layer.format]
        name = f"zero_point_{value}" if kind is ir.DataType.INT8 else f"zero_{kind.name.lower()}"
        return add_constant(graph, np.array(value, kind.numpy()), f"accuquant/{name}")
