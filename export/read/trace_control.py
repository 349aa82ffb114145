"""Trace a control network into a float ONNX graph, with an output for each of its residuals."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from accuquant.export.read.trace import declare, dynamic_shapes, example_of, example_sizes, trace_module
from accuquant.networks.control_signature import DOWN_OUT, MID_OUT, residual_specs
from accuquant.networks.controlled import call_control
from accuquant.networks.image_sides import multiple_of
from accuquant.networks.signature import Signature
from accuquant.networks.stored_weights import widened


class _Positional(nn.Module):
    """A control network called with positional tensors, in the order of the signature."""

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.names = [spec.name for spec in signature.conditioning]

    def forward(self, sample: Tensor, timestep: Tensor, *conditioning: Tensor) -> tuple[Tensor, ...]:
        first = timestep[:1] if timestep.ndim else timestep
        return call_control(self.network, sample, first, dict(zip(self.names, conditioning, strict=True)))


def trace_control(
    network: nn.Module, signature: Signature, *, opset: int = 21, dynamic: bool = True
) -> ir.Model:
    """Export a ControlNetModel with torch.onnx -> an onnx-ir model, as `trace` does a denoising network.

    Its outputs are `down_block_res_samples_0` and so on, and `mid_block_res_sample`. Raises ExportError where
    torch cannot trace it.
    """
    config: Any = network.config
    sizes = example_sizes(signature, config) if dynamic else dict(signature.sizes)
    outputs = residual_specs(config, DOWN_OUT, MID_OUT)
    model = trace_module(
        _Positional(widened(network), signature),
        tuple(example_of(spec, sizes) for spec in signature.inputs),
        dynamic_shapes(signature, multiple_of(signature, config)) if dynamic else None,
        inputs=[spec.name for spec in signature.inputs],
        outputs=[spec.name for spec in outputs],
        opset=opset,
        name=type(network).__name__,
    )
    declare(model.graph, [*signature.inputs, *outputs], sizes, dynamic=dynamic)
    return model
