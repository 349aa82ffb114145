"""The decoder of an autoencoder by itself: latents to images in one call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accuquant.errors import SourceError

#: Autoencoders of diffusers whose decoding is what `forward` does.
CLASSES = ("AutoencoderKL", "VQModel")


class DecoderNetwork(nn.Module):
    """Latents [B, C, h, w] -> images [B, 3, H, W] in [-1, 1], with the call of a denoising network.

    It holds the autoencoder's own modules, not copies. `config` is the autoencoder's, with `latent_size`
    (h, w), the size that signatures take where nothing else is said. Raises SourceError for an autoencoder of
    another class.
    """

    def __init__(self, vae: Any, latent_size: tuple[int, int]) -> None:
        super().__init__()
        name = type(vae).__name__
        if name not in CLASSES:
            raise SourceError(
                f"autoencoder {name}",
                got="a decoder that cannot be quantized yet",
                expected=" or ".join(CLASSES),
                remedy="Leave the decoder in float",
            )
        self.config = {**vae.config, "latent_size": tuple(latent_size)}
        self.quantize = getattr(vae, "quantize", None)
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, sample: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor]:
        """Return the images of `sample`; there is one timestep, and it changes nothing."""
        if self.quantize is not None:
            sample = self.quantize(sample)[0]
        spatial = sample if self.config.get("norm_type") == "spatial" else None
        if self.post_quant_conv is not None:
            sample = self.post_quant_conv(sample)
        return (self.decoder(sample) if spatial is None else self.decoder(sample, spatial),)
