"""A network whose every gradient can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from accuquant.networks.signature import Signature, TensorSpec
from accuquant.pipelines.source import Source


class PointwiseEps(nn.Module):
    """eps(x, t) = w x + b, a 1x1 convolution; `broken` makes it NaN while gradients are recorded."""

    def __init__(self, weight: float = 0.7, bias: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.broken = False
        assert self.conv.bias is not None
        with torch.no_grad():
            self.conv.weight.fill_(weight)
            self.conv.bias.fill_(bias)

    def forward(
        self, sample: Tensor, timestep: Tensor, return_dict: bool = True, class_labels: Tensor | None = None
    ) -> tuple[Tensor]:
        eps: Tensor = self.conv(sample)
        if class_labels is not None:
            eps = eps + class_labels.reshape(-1, 1, 1, 1) * 0.1
        if self.broken and torch.is_grad_enabled():
            eps = eps * float("nan")
        return (eps,)


def make_pointwise_source() -> Source:
    """Return the pointwise network as if it had been read from a pipeline folder."""
    image = ("batch", 1, "height", "width")
    signature = Signature(
        "PointwiseEps",
        TensorSpec("sample", image),
        TensorSpec("timestep", ("steps",), "int64"),
        (),
        TensorSpec("out_sample", image),
        {"batch": 1, "steps": 1, "height": 4, "width": 4},
    )
    network = PointwiseEps().requires_grad_(False).eval()
    return Source("pointwise", Path("."), "DDIMPipeline", "unet", network, DDIMScheduler(), signature)
