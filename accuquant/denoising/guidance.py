"""Guidance: how several predictions of one network become the prediction that the scheduler takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from accuquant.calibration_facts import COPIES
from accuquant.errors import unknown_name


@dataclass(frozen=True)
class Guidance:
    """How a pipeline guides, frozen into the denoising step.

    `kind` is one of:

        none                     one prediction, taken as it is
        embedded                 the same; the scale is an input of the network (LCM)
        classifier-free          [unconditional, conditional]: Ho and Salimans, arXiv 2207.12598
        conditional-first        the same, in the order of DiT
        normalized               the same, each vector as long as the conditional one (Qwen-Image, Lumina)
        beyond-conditional       [conditional, unconditional], from the conditional one on (Z-Image)
        image-and-text           [text, image, unconditional]: InstructPix2Pix, arXiv 2211.09800, equation 3

    `rescale` is that of Lin et al., arXiv 2305.08891, section 3.4. `learned_variance`: the network
    predicts a variance behind its channels, which the pipeline drops. `negated`: the scheduler is given the
    opposite of what the network predicts.
    """

    kind: str = "none"
    scale: float = 1.0
    image_scale: float = 1.0
    rescale: float = 0.0
    learned_variance: bool = False
    negated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in COPIES:
            raise unknown_name("guidance", self.kind, COPIES)

    @property
    def copies(self) -> int:
        """How often every latent goes through the network in one step."""
        return COPIES[self.kind]

    def expand(self, latents: Tensor) -> Tensor:
        """Repeat the batch once for each prediction: [B, C, H, W] -> [copies * B, C, H, W]."""
        return torch.cat([latents] * self.copies) if self.copies > 1 else latents

    def combine(self, prediction: Tensor, channels: int) -> Tensor:
        """Guide: [copies * B, C', H, W] -> [B, C', H, W], or `channels` of them with a learned variance.

        The order of operations is diffusers', so that its pipelines' latents are met bit for bit.
        """
        combine = _COMBINE.get(self.kind)
        if combine is not None:
            prediction = combine(self, prediction.chunk(self.copies))
        if self.learned_variance:
            prediction = prediction[:, :channels]
        return -prediction if self.negated else prediction

    def to_dict(self) -> dict[str, Any]:
        """Return the guidance as JSON values."""
        return asdict(self)


def _classifier_free(guidance: Guidance, parts: tuple[Tensor, ...]) -> Tensor:
    unconditional, conditional = parts
    guided = unconditional + guidance.scale * (conditional - unconditional)
    return _rescaled(guided, conditional, guidance.rescale) if guidance.rescale > 0 else guided


def _conditional_first(guidance: Guidance, parts: tuple[Tensor, ...]) -> Tensor:
    conditional, unconditional = parts
    return unconditional + guidance.scale * (conditional - unconditional)


def _normalized(guidance: Guidance, parts: tuple[Tensor, ...]) -> Tensor:
    guided, conditional = _conditional_first(guidance, parts), parts[0]
    length = torch.linalg.vector_norm
    factor: Tensor = length(conditional, dim=-1, keepdim=True) / length(guided, dim=-1, keepdim=True)
    return guided * factor


def _beyond_conditional(guidance: Guidance, parts: tuple[Tensor, ...]) -> Tensor:
    conditional, unconditional = parts
    return conditional + guidance.scale * (conditional - unconditional)


def _image_and_text(guidance: Guidance, parts: tuple[Tensor, ...]) -> Tensor:
    text, image, unconditional = parts
    return unconditional + guidance.scale * (text - image) + guidance.image_scale * (image - unconditional)


def _rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Give the guided prediction back the deviation of the conditional one, by `share`."""
    axes = list(range(1, guided.ndim))
    matched = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return share * matched + (1 - share) * guided


_COMBINE: dict[str, Callable[[Guidance, tuple[Tensor, ...]], Tensor]] = {
    "classifier-free": _classifier_free,
    "conditional-first": _conditional_first,
    "normalized": _normalized,
    "beyond-conditional": _beyond_conditional,
    "image-and-text": _image_and_text,
}
