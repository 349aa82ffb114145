"""The models that ship with AccuQuant, for the demo and the tests."""

from __future__ import annotations

from pathlib import Path

#: A diffusers pipeline of 2.7 M parameters, trained on Fashion-MNIST at 32x32; see its README.md.
FASHION_DDPM = Path(__file__).parent / "data" / "fashion-ddpm"
#: A Stable Diffusion pipeline of 5.5 M parameters for coloured clothes at 32x32; see its README.md.
FASHION_TEXT = FASHION_DDPM.with_name("fashion-text")
#: A DiT pipeline of 1.4 M parameters that paints emoji of four classes at 32x32; see its README.md.
EMOJI_DIT = FASHION_DDPM.with_name("emoji-dit")
#: A latent diffusion pipeline of 1.8 M parameters that paints emoji at 32x32; see its README.md.
EMOJI_UNET = FASHION_DDPM.with_name("emoji-unet")
