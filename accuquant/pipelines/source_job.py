"""What the workers of a cluster open to compute with the network of a Source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from accuquant.hub.repository import Repository
from accuquant.networks.device import device_of
from accuquant.networks.network import quantizable_layers
from accuquant.networks.signature import Signature
from accuquant.networks.stored_weights import is_offloaded, named_weights
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.lora import Lora
from accuquant.pipelines.single_file import is_single_file
from accuquant.pipelines.source import Source, load_source
from accuquant.units.job import Job
from accuquant.units.travelling import Roots

#: The name of a source's network among the roots.
NETWORK = "network"


@dataclass(frozen=True)
class OpenFiles:
    """Loads the network from a pipeline's folder, or from the Hub, on the node that asks."""

    source: str
    loras: tuple[Lora, ...]
    loading: Loading
    as_stored: bool
    offload: bool
    signature: Signature

    def __call__(self, device: str) -> Roots:
        """Return the network on `device`."""
        loaded = load_source(
            self.source, self.loras, **vars(self.loading), as_stored=self.as_stored, signature=self.signature
        )
        return {NETWORK: loaded.to(device, offload=self.offload).network}


@dataclass(frozen=True)
class OpenCopy:
    """Holds a network that no files have."""

    network: nn.Module

    def __call__(self, device: str) -> Roots:
        """Return the network on `device`."""
        return {NETWORK: self.network.to(device)}


def source_roots(source: Source) -> Roots:
    """Return what this process has opened of a source."""
    return {NETWORK: source.network}


def source_job(source: Source, *, tf32: bool = False, sees: Mapping[str, bytes] | None = None) -> Job:
    """Return what workers open to compute with the network of `source`, where and as it is held here."""
    return Job(
        _opener(source),
        {NETWORK: source.model_hash},
        device_of(source.network).type,
        tf32,
        sees=sees or {},
    )


def _opener(source: Source) -> OpenFiles | OpenCopy:
    hub = Repository.find(source.name) is not None
    if not hub and not (source.folder / "model_index.json").is_file():
        return OpenCopy(source.network)
    return OpenFiles(
        source.name if hub or is_single_file(source.name) else str(Path(source.folder).absolute()),
        source.loras,
        source.loading,
        any(
            w.is_floating_point() and w.dtype != torch.float32 for w in named_weights(source.network).values()
        ),
        any(map(is_offloaded, quantizable_layers(source.network).values())),
        source.signature,
    )
