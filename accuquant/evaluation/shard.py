"""Evaluate a shard: some seeds through every branch, and what is measured of their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accuquant._util.files import atomic_write
from accuquant._util.progress import Silent
from accuquant.denoising.start import Start
from accuquant.networks.device import device_of
from accuquant.units.per_worker import PerWorker
from accuquant.units.tensor_tree import Tree
from accuquant.verification.measure.decoder import unpacked
from accuquant.verification.measure.feature_networks import FeatureNetwork
from accuquant.verification.measure.features import extract_all, load_features
from accuquant.verification.measure.metrics import mse, psnr, ssim
from accuquant.verification.measure.rollout import Trajectory

from .branches import FP32, Tools, Workshop
from .evaluation_settings import members
from .metrics import METRICS, needed_outputs
from .real_images import RealImages
from .scores import PairScore, PromptScore, load_clip, load_image_reward, load_lpips, pictures

_PROMPT_SCORES = {"clip": load_clip, "image-reward": load_image_reward}
#: Latent error after each step, in a shard's result.
STEP_ERRORS = "step-errors"


@dataclass
class Meters:
    """The networks that metrics need, loaded at the first use, once a process."""

    shop: Workshop
    image_shape: tuple[int, ...]
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def features(self) -> FeatureNetwork:
        """Return the feature network."""
        settings = self.shop.settings
        network: FeatureNetwork = self._once(
            "features",
            lambda: load_features(
                settings.features, self.image_shape, weights=settings.weights, device=self._device
            ),
        )
        return network

    def pairs(self) -> dict[str, PairScore]:
        """Return the metrics that compare two images, by name."""
        chosen = self.shop.settings.metrics
        found: dict[str, PairScore] = {
            name: score for name, score in (("psnr", psnr), ("ssim", ssim)) if name in chosen
        }
        if "lpips" in chosen:
            weights = self.shop.settings.weights
            found["lpips"] = self._once("lpips", lambda: load_lpips(weights, self._device))
        return found

    def prompts(self) -> dict[str, PromptScore]:
        """Return the metrics that judge an image by its prompt, by name."""
        settings = self.shop.settings
        return {
            name: self._once(name, lambda load=load: load(settings.weights, self._device))
            for name, load in _PROMPT_SCORES.items()
            if name in settings.metrics
        }

    @property
    def _device(self) -> torch.device:
        return device_of(self.shop.reference.network)

    def _once(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


@dataclass(frozen=True)
class Shards:
    """Computes a shard by its name; nothing that it needs depends on other shards.

    A result maps "<metric>.<branch>" to [N], "<output>.<branch>" of the feature network to [N, D] and
    "step-errors.<branch>" to [N, T].
    """

    shop: Workshop
    tools: PerWorker[Tools]
    meters: PerWorker[Meters]

    @torch.no_grad()
    def __call__(self, unit: str) -> Tree:
        """Return what was measured of the images of `unit`."""
        images, size, parts = members(unit), self.shop.settings.batch_size, []
        for first in range(images.start, images.stop, size):
            parts.append(self._batch(range(first, min(first + size, images.stop))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, images: range) -> dict[str, Tensor]:
        tools = self.tools.get()
        start = tools.start(images)
        latents = {name: _sampled(tools, name, start) for name in tools.branches}
        pixels = {
            name: tools.images(name, unpacked(steps[-1], start.conditioning))
            for name, steps in latents.items()
        }
        found = self._scores(pixels, images) | self._features(pixels)
        for name, steps in latents.items():
            if name != FP32:
                errors = [mse(x, y) for x, y in zip(steps, latents[FP32], strict=True)]
                found[f"{STEP_ERRORS}.{name}"] = torch.stack(errors, 1).float()
        if self.shop.settings.keep_images is not None:
            _keep(self.shop.settings.keep_images, pixels, images)
        return found

    def _scores(self, pixels: Mapping[str, Tensor], images: range) -> dict[str, Tensor]:
        found = {
            f"{metric}.{name}": score(shown, pixels[FP32])
            for metric, score in self.meters.get().pairs().items()
            for name, shown in pixels.items()
            if name != FP32
        }
        texts = self.shop.task.prompts
        for metric, judge in self.meters.get().prompts().items():
            prompts = [texts[k % len(texts)] for k in images]
            found |= {f"{metric}.{name}": judge(shown, prompts) for name, shown in pixels.items()}
        return found

    def _features(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wanted = needed_outputs(self.shop.settings.metrics)
        if not wanted:
            return {}
        network = self.meters.get().features()
        measured = {name: extract_all(network, x, wanted) for name, x in pixels.items()}
        return {
            f"{output}.{name}": values for name, found in measured.items() for output, values in found.items()
        }


@dataclass(frozen=True)
class RealShards:
    """Computes the features of some of the real images."""

    real: RealImages
    meters: PerWorker[Meters]

    @torch.no_grad()
    def __call__(self, unit: str) -> Tree:
        """Return each output of the feature network that real images are compared by, [N, D]."""
        meters = self.meters.get()
        settings = meters.shop.settings
        wanted = needed_outputs(name for name in settings.metrics if METRICS[name].real)
        gray = meters.image_shape[0] == 1
        parts = [
            extract_all(meters.features(), images, wanted)
            for images in self.real.batches(members(unit), settings.batch_size, gray=gray)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in wanted}


def _sampled(tools: Tools, name: str, start: Start) -> list[Tensor]:
    """Return the latents [N, ...] after each step of a branch."""
    network = start.conditioning.bind(tools.branches[name])
    latents, _ = Trajectory(name, tools.process, network, None, Silent()).run(start)
    return latents


def _keep(folder: Path, pixels: Mapping[str, Tensor], images: range) -> None:
    for name, shown in pixels.items():
        for number, picture in zip(images, pictures(shown), strict=True):
            with atomic_write(folder / name / f"{number:06d}.png") as temporary:
                picture.save(temporary, format="PNG")
