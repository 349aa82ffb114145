"""Networks whose features tell sets of images apart: the bundled one, and Inception from two libraries."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.errors import MissingDependencyError, VerificationError
from accuquant.networks.device import CPU
from accuquant.verification.measure.weights_files import NONE, weights_file, where_to_put

#: What a network may give of an image: what FID compares, what sFID compares, what IS is made of.
FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"
#: Channels of a map that sFID takes (Nash et al., arXiv 2103.03841).
_SPATIAL_CHANNELS = 7
FASHION_SHAPE = (1, 32, 32)
_INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_CLEAN_FILE = "inception-2015-12-05.pt"
_CLEAN_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"


class FeatureExtractor(Protocol):
    """Maps images [N, C, H, W] in [0, 1] to features [N, D]."""

    @property
    def name(self) -> str:
        """The name that reports print."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features [N, D] of images [N, C, H, W] in [0, 1]."""


class FeatureNetwork(FeatureExtractor, Protocol):
    """A feature extractor that may give more than features."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it gives: FEATURES, and of SPATIAL and LOGITS what it has."""

    def measure(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return each of `wanted`, [N, D] of its own width; all are in `outputs`."""


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's, which gives features and nothing else."""

    name: str
    function: Any
    outputs: tuple[str, ...] = (FEATURES,)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        return torch.as_tensor(self.function(images))

    def measure(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return the features, or nothing."""
        return {name: self(images) for name in wanted}


class Fashion:
    """The bundled network for 32x32 grayscale images of clothes."""

    name = "fashion"
    outputs = (FEATURES, SPATIAL, LOGITS)

    def __init__(self, device: torch.device = CPU) -> None:
        from accuquant.verification.measure.fashion import load_fashion_classifier

        self._network = load_fashion_classifier().to(device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the 64 values before the last layer."""
        return self.measure(images, (FEATURES,))[FEATURES]

    def measure(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return what is wanted; SPATIAL is the first channels of the last 4x4 map."""
        if tuple(images.shape[1:]) != FASHION_SHAPE:
            raise VerificationError(
                "feature network 'fashion'",
                got=f"images of shape {list(images.shape[1:])}",
                expected=f"{list(FASHION_SHAPE)}, grayscale images of clothes",
                remedy="Give --features inception, --features MODULE:CALLABLE, or --features none",
            )
        with watched(self._network.trunk.get_submodule("stage3")) as maps:
            features = self._network.features(images.to(self._device))
        found = {FEATURES: features, SPATIAL: first_channels(maps[0])}
        if LOGITS in wanted:
            found[LOGITS] = self._network.head(features)
        return {name: found[name].to(images.device) for name in wanted}


class Inception:
    """Inception-v3 as in the first FID (2015), through torch-fidelity: 2048 features, 1008 classes.

    SPATIAL is what OpenAI's evaluator calls mixed_6/conv: the first branch of a 17x17 block. LOGITS are
    without the bias, as there.
    """

    name = "inception"
    outputs = (FEATURES, SPATIAL, LOGITS)
    #: What torch-fidelity is asked for, in its order.
    requested = ("2048", "logits_unbiased")

    def __init__(self, network: nn.Module, device: torch.device = CPU) -> None:
        self._network = network.to(device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the pooled features [N, 2048]."""
        return self.measure(images, (FEATURES,))[FEATURES]

    def measure(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return what is wanted of images of any size."""
        pixels = (in_colour(images) * 255).round().to(torch.uint8)
        block: Any = self._network.Mixed_6d
        with watched(block.branch1x1) as maps:
            features, logits = self._network(pixels.to(self._device))
        found = {FEATURES: features, LOGITS: logits, SPATIAL: first_channels(maps[0])}
        return {name: found[name].to(images.device) for name in wanted}


class CleanFid:
    """The same Inception behind clean-fid's resizing (Parmar et al., arXiv 2104.11222): 2048 features."""

    name = "clean-fid"
    outputs = (FEATURES,)

    def __init__(self, network: Any, resize: Any, device: torch.device = CPU) -> None:
        self._network, self._resize, self._device = network.to(device), resize, device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the pooled features [N, 2048] of images of any size."""
        pixels = (in_colour(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        resized = np.stack([self._resize(image) for image in pixels]).transpose(0, 3, 1, 2)
        features: Tensor = self._network(torch.from_numpy(resized).to(self._device))
        return features.to(images.device)

    def measure(self, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return the features, or nothing."""
        return {name: self(images) for name in wanted}


def load_inception(weights: Mapping[str, Path] = NONE, device: torch.device = CPU) -> Inception:
    """Return torch-fidelity's Inception, its weights from a file of torch-fidelity's where one is named."""
    module = _imported("inception", "torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
    path = weights_file("inception", weights)
    try:
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat",
            list(Inception.requested),
            feature_extractor_weights_path=None if path is None else str(path),
        )
    except Exception as fault:  # a failed download raises whatever the client library raises
        raise _no_weights("inception", fault, _INCEPTION_URL + _INCEPTION_FILE) from fault
    return Inception(network.eval(), device)


def load_clean_fid(weights: Mapping[str, Path] = NONE, device: torch.device = CPU) -> CleanFid:
    """Return clean-fid's Inception, its weights from the named file or a folder that holds it."""
    networks = _imported("clean-fid", "cleanfid.inception_torchscript", "clean-fid")
    resizing = _imported("clean-fid", "cleanfid.resize", "clean-fid")
    path = weights_file("clean-fid", weights)
    folder = Path(torch.hub.get_dir()) / "checkpoints" if path is None else path
    if folder.is_file():
        folder = folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        network = networks.InceptionV3W(str(folder), download=path is None, resize_inside=False)
    except Exception as fault:
        raise _no_weights("clean-fid", fault, _CLEAN_URL + _CLEAN_FILE) from fault
    return CleanFid(network.eval(), resizing.build_resizer("clean"), device)


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of `module` during the block."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def first_channels(maps: Tensor) -> Tensor:
    """Return the first seven channels of maps [N, C, H, W] as one row an image."""
    return maps[:, :_SPATIAL_CHANNELS].flatten(1)


def in_colour(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] with three channels; gray is repeated."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def _imported(network: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise MissingDependencyError(
            f"feature network '{network}'",
            got=f"no {package} ({fault})",
            expected=f"{package} and torchvision, installed for this version of torch",
            remedy=f"Run `pip install {package}`, or choose another network with --features",
        ) from fault


def _no_weights(network: str, fault: Exception, url: str) -> VerificationError:
    return VerificationError(
        f"feature network '{network}'",
        got=f"{type(fault).__name__}: {fault}",
        expected="Inception weights that can be downloaded, or are in torch's cache, or in a file you name",
        remedy=f"Download {url} and give {where_to_put(network)}",
    )
