"""Feature networks of FID2FP32, chosen by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accuquant.errors import UsageError, VerificationError
from accuquant.networks.device import CPU
from accuquant.verification.measure.feature_networks import (
    FASHION_SHAPE,
    Fashion,
    FeatureExtractor,
    FeatureNetwork,
    UserFunction,
    load_clean_fid,
    load_inception,
)
from accuquant.verification.measure.frechet import frechet_distance
from accuquant.verification.measure.weights_files import NONE

CHOICES = ("auto", "fashion", "inception", "clean-fid", "none", "MODULE:CALLABLE")
_BATCH = 64


def load_features(
    name: str,
    image_shape: tuple[int, ...],
    *,
    weights: Mapping[str, Path] = NONE,
    device: torch.device = CPU,
) -> FeatureNetwork | None:
    """Return the feature network called `name`, on `device`; None for "none".

    "fashion" is bundled, "inception" needs torch-fidelity, "clean-fid" clean-fid, "package.module:callable"
    is any function from images [N, C, H, W] in [0, 1] to features [N, D]. "auto" takes "fashion" for images
    of `image_shape` (1, 32, 32), "inception" where torch-fidelity is installed, and None otherwise.
    `weights` says where weights lie that are not to be downloaded.
    """
    if name == "none":
        return None
    if name == "auto":
        if image_shape == FASHION_SHAPE:
            return Fashion(device)
        return load_inception(weights, device) if importlib.util.find_spec("torch_fidelity") else None
    if name == "fashion":
        return Fashion(device)
    if name == "inception":
        return load_inception(weights, device)
    if name == "clean-fid":
        return load_clean_fid(weights, device)
    if ":" in name:
        return UserFunction(name, _import_callable(name))
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
    return _checked(extractor, features, images).numpy()


@torch.no_grad()
def extract_all(extractor: FeatureNetwork, images: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
    """Return each of `wanted` for images [N, C, H, W] in [0, 1], float32 [N, D], computed in batches."""
    batches = [extractor.measure(batch, wanted) for batch in torch.split(images, _BATCH)]
    return {
        name: _checked(extractor, torch.cat([batch[name].float() for batch in batches]), images)
        for name in wanted
    }


def _checked(extractor: FeatureExtractor, features: Tensor, images: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) != len(images):
        raise VerificationError(
            f"feature network '{extractor.name}'",
            got=f"features of shape {tuple(features.shape)} for {len(images)} images",
            expected=f"({len(images)}, D)",
            remedy="Return one row of features for each image",
        )
    return features


def fid_to_fp32(extractor: FeatureExtractor, images: Tensor, reference: Tensor) -> float:
    """Return FID2FP32: the Frechet distance between the features of two sets of images."""
    return frechet_distance(extract(extractor, reference), extract(extractor, images))


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
