"""The decoder of a pipeline's autoencoder as a source of its own: a generator of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accuquant.denoising.one_step import OneStepScheduler
from accuquant.errors import SourceError
from accuquant.networks.decoder_network import DecoderNetwork
from accuquant.networks.device import device_of
from accuquant.networks.network import signature_of
from accuquant.pipelines.source import Source, load_component

#: The attributes of pipelines that hold an autoencoder, and the folder of an export that holds its decoder.
AUTOENCODERS = ("vae", "vqvae")
DECODER = "vae_decoder"


@dataclass(frozen=True)
class DecoderSource:
    """An autoencoder that was loaded, on the device of the network of its pipeline `source`."""

    source: Source
    part: str
    autoencoder: Any

    def of_size(self, latent_size: Sequence[int]) -> Source:
        """Return the decoder as a source whose own size is that of latents [*, *, *latent_size]."""
        height, width = latent_size
        network = DecoderNetwork(self.autoencoder, (int(height), int(width))).eval()
        return Source(
            name=self.source.name,
            folder=self.source.folder / self.part,
            pipeline_class=self.source.pipeline_class,
            component=DECODER,
            network=network,
            scheduler=OneStepScheduler(),
            signature=signature_of(network),
            loading=self.source.loading,
        )


def decoder_source(source: Source) -> DecoderSource:
    """Load the autoencoder of `source`. Raises SourceError where it has none that can be quantized."""
    part = next((part for part in AUTOENCODERS if (source.folder / part).is_dir()), None)
    if part is None:
        raise SourceError(
            f"pipeline '{source.name}'",
            got="no autoencoder",
            expected=f"a pipeline with {' or '.join(AUTOENCODERS)}",
            remedy="Leave --decoder out: the network makes the images itself",
        )
    autoencoder = load_component(source.folder, part, source.loading).to(device_of(source.network))
    found = DecoderSource(source, part, autoencoder)
    DecoderNetwork(autoencoder, (1, 1))  # refuses other classes
    return found
