"""A network whose every gradient can be worked out by hand, and trajectories of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.pipelines.source import Source
from accuquant.qparams import LayerQParams, fingerprint

SHAPE = (1, 4, 4)


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


@pytest.fixture
def pointwise_source() -> Source:
    return make_pointwise_source()


@pytest.fixture
def pointwise() -> PointwiseEps:
    return PointwiseEps()


@pytest.fixture
def process() -> DenoisingProcess:
    """Return DDIM at 6 steps without clipping: every step is linear in x and eps."""
    return DenoisingProcess(DDIMScheduler(clip_sample=False), 6)


@pytest.fixture
def groups(process: DenoisingProcess) -> StepGroups:
    """Return two groups of three steps."""
    return StepGroups.from_timesteps(process.timesteps, group_size=3, num_train_timesteps=1000)


@pytest.fixture
def pointwise_qparams(pointwise: PointwiseEps) -> Callable[..., LayerQParams]:
    """Return a function that makes the qparams of `conv`: 4-bit activations, an exact weight."""

    def make(scales: tuple[float, ...] = (0.6, 0.2), **changes: Any) -> LayerQParams:
        weight = pointwise.conv.weight.detach().numpy()
        fields: dict[str, Any] = {"activation_bits": 4, "weight_scale": np.array([0.01], np.float32)}
        return LayerQParams(
            name="conv",
            kind="conv2d",
            weight_shape=(1, 1, 1, 1),
            fingerprint=fingerprint(weight),
            activation_scale=np.array(scales, np.float32),
            **(fields | changes),
        )

    return make


@pytest.fixture
def batches(pointwise: PointwiseEps, process: DenoisingProcess) -> list[TrajectoryBatch]:
    """Return four batches of three trajectories."""
    return record_trajectories(pointwise, process, SHAPE, num_trajectories=12, batch_size=3, seed=3)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Return a function after which no file grows beyond so many bytes: what a full disk is like."""
    if sys.platform == "win32":
        pytest.skip("limits of POSIX")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
