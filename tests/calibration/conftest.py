"""A network whose every gradient can be worked out by hand, and trajectories of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from pointwise import PointwiseEps, make_pointwise_source

from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.pipelines.source import Source
from accuquant.qparams import LayerQParams, fingerprint

SHAPE = (1, 4, 4)


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
