"""Other quantizers on the same layers and the same calibration calls: ONNX Runtime, NNCF, Model Optimizer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from float_graph import FloatGraph
from torch import Tensor, nn

from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.denoising.process import DenoisingProcess
from accuquant.graph.vocabulary import LAYER_OPS
from accuquant.networks.network import call

_OPENVINO_OPS = ("Convolution", "ConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class NetworkCall:
    """One full-precision call: sample [B, C, H, W], the timestep of the whole batch, and further inputs."""

    sample: Tensor
    timestep: float
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def feeds(self) -> dict[str, Any]:
        """The inputs of the float ONNX."""
        feeds = {"sample": self.sample, **self.conditioning}
        timestep = np.array([self.timestep], np.float32)
        return {"timestep": timestep, **{name: tensor.numpy() for name, tensor in feeds.items()}}


def trajectory_calls(
    process: DenoisingProcess,
    batches: Sequence[TrajectoryBatch],
    conditioning: Mapping[str, Tensor] | None = None,
) -> list[NetworkCall]:
    """Return every call that the float network got on its own trajectories, all with the `conditioning`."""
    scaled = process.scheduler.scale_model_input
    return [
        NetworkCall(
            scaled(batch.latents[step], process.scheduler.timesteps[step]), timestep, conditioning or {}
        )
        for batch in batches
        for step, timestep in enumerate(process.timesteps)
    ]


def quantize_with_onnxruntime(
    graph: FloatGraph, layers: tuple[str, ...], calls: Sequence[NetworkCall], output: Path
) -> None:
    """Write `output` (.onnx) with quantize_static: min-max, symmetric int8, weights per channel, QDQ.

    Only the inputs and weights of `layers` are quantized. By default ONNX Runtime quantizes outputs and
    biases as well; without them the graph quantizes what AccuQuant quantizes, and loses less.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        graph.path,
        output,
        _Reader(calls),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=sorted(LAYER_OPS),
        nodes_to_quantize=graph.node_names(layers),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": sorted(LAYER_OPS),
        },
    )


def quantize_to_operators(graph: FloatGraph, calls: Sequence[NetworkCall], output: Path) -> None:
    """Write `output` (.onnx) with quantize_static as ONNX Runtime does by itself, in its integer operators.

    Activations uint8 with zero-points, weights int8 per channel, every operator that it can quantize.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        graph.path,
        output,
        _Reader(calls),
        quant_format=QuantFormat.QOperator,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Reader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self, calls: Sequence[NetworkCall]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (entry.feeds for entry in calls)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feeds, or None after the last."""
        return next(self._feeds, None)


def quantize_with_nncf(
    graph: FloatGraph,
    layers: tuple[str, ...],
    calls: Sequence[NetworkCall],
    output: Path,
    *,
    only_layers: bool,
) -> int:
    """Write `output` (OpenVINO .xml) with nncf.quantize -> the number of quantized activations.

    With `only_layers` every operation but `layers` is ignored; without, only the other layers are, and
    NNCF quantizes additions, normalizations and attention products as it likes.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.WARNING)
    model = openvino.Core().read_model(graph.path)
    ignored = _ignored_operations(model, graph, layers, only_layers=only_layers)
    result = nncf.quantize(
        model,
        nncf.Dataset([entry.feeds for entry in calls]),
        subset_size=len(calls),
        # ranges and constants are no operations that NNCF knows by name, so validation would fail
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
    )
    openvino.save_model(result, output, compress_to_fp16=False)
    return sum(op.get_type_name() == "FakeQuantize" for op in result.get_ops())


def _ignored_operations(
    model: Any, graph: FloatGraph, layers: tuple[str, ...], *, only_layers: bool
) -> list[str]:
    """Return the names of the operations of an OpenVINO `model` that NNCF shall leave in float."""
    layer_of = {name: layer for layer, e in graph.nodes.items() for names in e for name in names}
    found, ignored = set(), []
    for op in model.get_ordered_ops():
        name: str = op.get_friendly_name()
        # OpenVINO calls a convolution NODE/WithoutBiases, and the addition of its bias NODE
        is_layer = op.get_type_name() in _OPENVINO_OPS
        layer = layer_of.get(name.removesuffix("/WithoutBiases")) if is_layer else None
        found.add(layer)
        if layer not in layers and (only_layers or layer is not None):
            ignored.append(name)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        raise SystemExit(f"OpenVINO's graph has no operation named after {', '.join(missing)}")
    return ignored


def quantize_with_modelopt(
    network: nn.Module,
    layers: tuple[str, ...],
    calls: Sequence[NetworkCall],
    *,
    weight_bits: int,
    activation_bits: int,
) -> nn.Module:
    """Return a copy of `network` after mtq.quantize with INT8_DEFAULT_CFG, only `layers` enabled.

    The preset is max calibration, weights per channel, activations per tensor; other bits replace its
    num_bits.
    """
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    for entry in config["quant_cfg"]:
        for suffix, bits in (("weight_quantizer", weight_bits), ("input_quantizer", activation_bits)):
            if entry["quantizer_name"].endswith(suffix) and entry.get("cfg"):
                entry["cfg"]["num_bits"] = bits

    @torch.no_grad()
    def forward_loop(model: nn.Module) -> None:
        for entry in calls:
            call(model, entry.sample, torch.tensor(entry.timestep))

    quantized: nn.Module = mtq.quantize(copy.deepcopy(network), config, forward_loop)
    wanted = {f"{layer}.{part}" for layer in layers for part in ("weight_quantizer", "input_quantizer")}
    mtq.disable_quantizer(quantized, lambda name: name not in wanted)
    enabled = {name for name, module in quantized.named_modules() if getattr(module, "is_enabled", False)}
    if enabled != wanted:
        raise SystemExit(f"Model Optimizer did not quantize {', '.join(sorted(wanted - enabled))}")
    return quantized.eval()
