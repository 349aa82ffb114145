"""The autoencoder of a pipeline in an engine, with the face of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin

from accuquant.errors import UsageError
from accuquant.runtime.engine_part import EnginePart
from accuquant.runtime.runner import Runner


class EngineAutoencoder(EnginePart, ModelMixin):
    """An exported AutoencoderKL: latents to images, and images to latents."""

    def __init__(self, decoder: Runner, encoder: Runner | None, config: Mapping[str, Any]) -> None:
        ModelMixin.__init__(self)  # type: ignore[no-untyped-call]
        self.hold({"decoder": decoder} if encoder is None else {"decoder": decoder, "encoder": encoder})
        parameters = inspect.signature(AutoencoderKL).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        self._config: Any = FrozenDict({**defaults, **config})  # type: ignore[no-untyped-call]

    @property
    def config(self) -> Any:
        """The original autoencoder's configuration, by attribute or by key."""
        return self._config

    @torch.no_grad()
    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Decode latents [B, C, h, w] -> images [B, 3, H, W] in [-1, 1]."""
        (image,) = self.run("decoder", z).values()
        return DecoderOutput(sample=image) if return_dict else (image,)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Encode images [B, 3, H, W] -> the distribution of their latents."""
        if "encoder" not in self._runners:
            raise UsageError(
                "EngineAutoencoder.encode",
                got="the decoder alone",
                expected="an export that holds the encoder too",
                remedy="Export again with --whole-pipeline, or encode with the pipeline's own autoencoder",
            )
        (parameters,) = self.run("encoder", x).values()
        found: Any = DiagonalGaussianDistribution(parameters)
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)
