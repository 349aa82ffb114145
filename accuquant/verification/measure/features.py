"""Feature networks of FID2FP32, chosen by name."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from accuquant.errors import MissingDependencyError, UsageError, VerificationError
from accuquant.verification.measure.frechet import frechet_distance

CHOICES = ("auto", "fashion", "inception", "none", "MODULE:CALLABLE")
_BATCH = 64
_FASHION_SHAPE = (1, 32, 32)


class FeatureExtractor(Protocol):
    """Maps images [N, C, H, W] in [0, 1] to features [N, D]."""

    @property
    def name(self) -> str:
        """The name that reports print."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features [N, D] of images [N, C, H, W] in [0, 1]."""


@dataclass(frozen=True)
class _Callable:
    name: str
    function: Any

    def __call__(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.function(images))


class _Fashion:
    """The bundled network for 32x32 grayscale images of clothes."""

    name = "fashion"

    def __init__(self) -> None:
        from accuquant.verification.measure.fashion import load_fashion_classifier

        self._network = load_fashion_classifier()

    def __call__(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != _FASHION_SHAPE:
            raise VerificationError(
                "feature network 'fashion'",
                got=f"images of shape {list(images.shape[1:])}",
                expected=f"{list(_FASHION_SHAPE)}, grayscale images of clothes",
                remedy="Give --features inception, --features MODULE:CALLABLE, or --features none",
            )
        return self._network.features(images)


class _Inception:
    """Inception-v3 pool features (2048), the network of the usual FID, through torch-fidelity."""

    name = "inception"

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, images: Tensor) -> Tensor:
        colour = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
        features: Tensor = self._network((colour * 255).round().to(torch.uint8))[0]
        return features


def load_features(name: str, image_shape: tuple[int, ...]) -> FeatureExtractor | None:
    """Return the feature network called `name`; None for "none".

    "fashion" is bundled, "inception" needs torch-fidelity, "package.module:callable" is any function
    from images [N, C, H, W] in [0, 1] to features [N, D]. "auto" takes "fashion" for images of
    `image_shape` (1, 32, 32), "inception" where torch-fidelity is installed, and None otherwise.
    """
    if name == "none":
        return None
    if name == "auto":
        if image_shape == _FASHION_SHAPE:
            return _Fashion()
        return _load_inception() if importlib.util.find_spec("torch_fidelity") else None
    if name == "fashion":
        return _Fashion()
    if name == "inception":
        return _load_inception()
    if ":" in name:
        return _Callable(name, _import_callable(name))
    raise UsageError(
        "feature network",
        got=repr(name),
        expected=f"one of {', '.join(CHOICES)}",
        remedy="Correct --features",
    )


@torch.no_grad()
def extract(extractor: FeatureExtractor, images: Tensor) -> npt.NDArray[np.floating[Any]]:
    """Return the features [N, D] of images [N, C, H, W] in [0, 1], computed in batches."""
    features = torch.cat([extractor(batch).float() for batch in torch.split(images, _BATCH)])
    if features.ndim != 2 or len(features) != len(images):
        raise VerificationError(
            f"feature network '{extractor.name}'",
            got=f"features of shape {tuple(features.shape)} for {len(images)} images",
            expected=f"({len(images)}, D)",
            remedy="Return one row of features for each image",
        )
    return features.numpy()


def fid_to_fp32(extractor: FeatureExtractor, images: Tensor, reference: Tensor) -> float:
    """Return FID2FP32: the Frechet distance between the features of two sets of images."""
    return frechet_distance(extract(extractor, reference), extract(extractor, images))


def _load_inception() -> FeatureExtractor:
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as fault:
        raise MissingDependencyError(
            "feature network 'inception'",
            got=f"no torch-fidelity ({fault})",
            expected="torch-fidelity and torchvision, installed for this version of torch",
            remedy="Run `pip install torch-fidelity`, or choose another network with --features",
        ) from fault
    try:
        return _Inception(module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval())
    except Exception as fault:  # a failed download raises whatever the client library raises
        raise VerificationError(
            "feature network 'inception'",
            got=f"{type(fault).__name__}: {fault}",
            expected="Inception weights that can be downloaded, or are in torch's cache",
            remedy="Run once with network access, or choose another network with --features",
        ) from fault


def _import_callable(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as fault:
        raise UsageError(
            f"feature network '{name}'",
            got=str(fault),
            expected="MODULE:CALLABLE that Python can import",
            remedy="Correct the name, or put the module's folder on PYTHONPATH",
        ) from fault
    if not callable(function):
        raise UsageError(
            f"feature network '{name}'",
            got=f"a {type(function).__name__}",
            expected="a function from images [N, C, H, W] to features [N, D]",
            remedy="Name a function",
        )
    return function
