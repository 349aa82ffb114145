"""Metrics of single images by networks of other libraries: LPIPS, CLIP score, ImageReward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from accuquant.errors import MissingDependencyError, VerificationError
from accuquant.networks.device import CPU
from accuquant.verification.measure.feature_networks import in_colour
from accuquant.verification.measure.weights_files import NONE, weights_file, where_to_put

#: (images, their FP32 images), both [N, C, H, W] in [0, 1] -> [N]
PairScore = Callable[[Tensor, Tensor], Tensor]
#: (images [N, C, H, W] in [0, 1], a prompt for each) -> [N]
PromptScore = Callable[[Tensor, Sequence[str]], Tensor]

_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_CLIP = "openai/clip-vit-large-patch14"
_REWARD = "https://huggingface.co/THUDM/ImageReward (ImageReward.pt and med_config.json)"
_FILES_OF_REWARD = ("ImageReward.pt", "med_config.json")


def load_lpips(weights: Mapping[str, Path] = NONE, device: torch.device = CPU) -> PairScore:
    """Return LPIPS with AlexNet as torchmetrics computes it (Zhang et al., arXiv 1801.03924).

    The linear weights come with torchmetrics; AlexNet's are torchvision's, downloaded or from the named file.
    """
    lpips = _imported("lpips", "torchmetrics.functional.image.lpips", "torchmetrics torchvision")
    path = weights_file("lpips", weights)
    try:
        network = lpips._LPIPS(net="alex", pnet_rand=path is not None)
        if path is not None:
            _fill(network.net, torch.load(path, map_location="cpu", weights_only=True))
    except ImportError as fault:  # torchmetrics is there and torchvision is not
        raise _missing("lpips", "torchmetrics torchvision", fault) from fault
    except Exception as fault:  # a failed download raises whatever the client library raises
        raise _no_weights("lpips", _ALEXNET, fault) from fault
    network = network.eval().to(device)

    @torch.no_grad()
    def score(images: Tensor, reference: Tensor) -> Tensor:
        pair = (in_colour(x).to(device, torch.float32) for x in (images, reference))
        found: Tensor = network(*pair, normalize=True)
        return found.flatten().double().cpu()

    return score


def load_clip(weights: Mapping[str, Path] = NONE, device: torch.device = CPU) -> PromptScore:
    """Return the CLIP score, 100 times the cosine of image and prompt (Hessel et al., arXiv 2104.08718).

    By transformers, with the model of a folder as save_pretrained writes it where one is named.
    """
    transformers = _imported("clip", "transformers", "transformers")
    path = weights_file("clip", weights)
    source = _CLIP if path is None else str(path)
    try:
        network = transformers.CLIPModel.from_pretrained(source).eval().to(device)
        processor = transformers.CLIPProcessor.from_pretrained(source)
    except Exception as fault:
        raise _no_weights("clip", f"https://huggingface.co/{_CLIP}", fault) from fault

    @torch.no_grad()
    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        given = processor(
            text=list(prompts), images=pictures(images), return_tensors="pt", padding=True, truncation=True
        )
        out = network(**{name: value.to(device) for name, value in given.items()})
        cosine = torch.cosine_similarity(out.image_embeds.double(), out.text_embeds.double(), dim=1)
        return 100 * cosine.cpu()

    return score


def load_image_reward(weights: Mapping[str, Path] = NONE, device: torch.device = CPU) -> PromptScore:
    """Return ImageReward (Xu et al., arXiv 2304.05977), by the authors' package.

    A named folder holds ImageReward.pt and med_config.json.
    """
    library = _imported("image-reward", "ImageReward", "image-reward")
    path = weights_file("image-reward", weights)
    try:
        given: dict[str, Any] = {"device": str(device)}
        name = "ImageReward-v1.0"
        if path is not None:
            checkpoint, config = (path / file for file in _FILES_OF_REWARD)
            name, given["med_config"] = str(checkpoint), str(config)
        network = library.load(name, **given)
    except Exception as fault:
        raise _no_weights("image-reward", _REWARD, fault) from fault

    @torch.no_grad()
    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = [
            network.score(prompt, image) for prompt, image in zip(prompts, pictures(images), strict=True)
        ]
        return torch.tensor(found, dtype=torch.float64)

    return score


def pictures(images: Tensor) -> list[Image.Image]:
    """Return images [N, C, H, W] in [0, 1] as RGB pictures of 8 bits."""
    pixels = (in_colour(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy torchvision's `features.3.weight` into the slice that holds module 3."""
    own = {name.split(".", 1)[1]: parameter for name, parameter in network.named_parameters()}
    for name, parameter in own.items():
        parameter.data.copy_(state[f"features.{name}"])


def _imported(metric: str, module: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise _missing(metric, packages, fault) from fault


def _missing(metric: str, packages: str, fault: ImportError) -> MissingDependencyError:
    first = (str(fault).strip().splitlines() or ["an ImportError"])[0]
    return MissingDependencyError(
        f"metric '{metric}'",
        got=f"{first}",
        expected=f"the packages {packages.replace(' ', ' and ')}, installed for this version of torch",
        remedy=f"Run `pip install {packages}`, or leave '{metric}' out of --metrics",
    )


def _no_weights(metric: str, url: str, fault: Exception) -> VerificationError:
    first = (str(fault).strip().splitlines() or [""])[0]
    return VerificationError(
        f"metric '{metric}'",
        got=f"{type(fault).__name__}: {first}",
        expected="weights that can be downloaded, or lie in the library's cache, or where you say",
        remedy=f"Download {url} and give {where_to_put(metric)}",
    )
