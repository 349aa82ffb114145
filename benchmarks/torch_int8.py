"""The float network in PyTorch, compiled by inductor, and quantized for its x86 int8 kernels by torchao."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from competitors import NetworkCall
from torch import Tensor, nn


class _Prediction(nn.Module):
    """A diffusers UNet as sample, timestep, text embeddings where it takes them -> prediction."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, *text: Tensor) -> Tensor:
        """Return the prediction."""
        prediction: Tensor = self.network(sample, timestep, *text, return_dict=False)[0]
        return prediction


def compiled_float(network: nn.Module, feeds: dict[str, Any]) -> Callable[[], Any]:
    """Return a call of the float network through torch.compile, channels-last."""
    inputs = _tensors(feeds)
    channels_last: Any = _Prediction(network)
    compiled = torch.compile(channels_last.to(memory_format=torch.channels_last))
    return _without_gradients(lambda: compiled(*inputs).numpy())


def compiled_int8(
    network: nn.Module, feeds: dict[str, Any], calls: Sequence[NetworkCall]
) -> Callable[[], Any]:
    """Return a call of the network in the default static int8 of X86InductorQuantizer: every layer it knows.

    Calibrated on `calls`, whose samples are repeated to the batch of `feeds`.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    inputs = _tensors(feeds)
    sample, timestep, *_ = inputs
    exported = torch.export.export(_Prediction(network).eval(), inputs).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = prepare_pt2e(exported, quantizer)
        for entry in calls:
            rows = [
                tensor.repeat(len(sample), *[1] * (tensor.ndim - 1))[: len(sample)]
                for tensor in (entry.sample, *entry.conditioning.values())
            ]
            prepared(rows[0], torch.full_like(timestep, entry.timestep), *rows[1:])
        compiled = torch.compile(convert_pt2e(prepared))
    return _without_gradients(lambda: compiled(*inputs).numpy())


def _tensors(feeds: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return the sample, channels-last, the timestep, and text embeddings where there are any."""
    sample = torch.from_numpy(feeds["sample"]).to(memory_format=torch.channels_last)
    text = [torch.from_numpy(feeds[name]) for name in ("encoder_hidden_states",) if name in feeds]
    return (sample, torch.from_numpy(feeds["timestep"]), *text)


def _without_gradients(run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return run()

    return call
