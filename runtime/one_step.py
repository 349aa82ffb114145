"""Make images with a generator in an engine: noise in, images out, one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accuquant.errors import UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.loop_profile import counted
from accuquant.runtime.noise_schedule import Float32Array
from accuquant.runtime.samplers import StepCallback
from accuquant.runtime.torch_noise import TorchNoise


def make_images(
    model: EngineModel, seeds: Sequence[int], *, callback: StepCallback | None = None
) -> Float32Array:
    """Return the images [B, C, H, W] of the latents that torch draws from `seeds`, one a seed."""
    signature = model.manifest.signature
    shape = signature.sample.resolve(signature.sizes | {"batch": 1})
    latents = np.concatenate([TorchNoise(seed).randn(shape) for seed in seeds])
    with counted(model.profile, "drop-in"):
        images = np.asarray(model(latents, 0.0), np.float32)
    if callback is not None:
        callback(0, 0, images)
    return images


def check_one_step(manifest: Manifest, steps: int | None, eta: float) -> None:
    """Raise UsageError for what only a loop of several steps has."""
    for option, given, known in (("--steps", manifest.steps(steps), 1), ("--eta", eta, 0)):
        if given != known:
            raise UsageError(
                f"{option} {given:g}",
                got="a choice for a loop of denoising steps",
                expected=f"{known}: a generator makes an image in one call",
                remedy="Leave it out",
            )
