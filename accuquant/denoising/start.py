"""What trajectories start from: latents, random states and conditioning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess, restored_generators, seeded_generators

_LATENTS, _GENERATORS, _CONDITIONING = "latents", "generators", "conditioning."


@dataclass(frozen=True)
class Start:
    """Everything that a pipeline has ready before its first step, for B images.

    `latents` [B, C, H, W]; `generators`: the random state of each image after what was drawn for them.
    """

    latents: Tensor
    generators: tuple[Tensor, ...]
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> Start:
        """Return the same on `device`; random states stay on the CPU, where all noise is drawn."""
        return Start(self.latents.to(device), self.generators, self.conditioning.to(device))

    def fresh_generators(self) -> list[torch.Generator]:
        """Return generators that go on where the start was made."""
        return restored_generators(self.generators)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return one flat dict of tensors; `from_tensors` reads it back."""
        flat = {f"{_CONDITIONING}{name}": t for name, t in self.conditioning.to_tensors().items()}
        return {_LATENTS: self.latents, _GENERATORS: torch.stack(self.generators), **flat}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> Start:
        """Read what `to_tensors` returned."""
        conditioning = {
            name.removeprefix(_CONDITIONING): tensor
            for name, tensor in flat.items()
            if name.startswith(_CONDITIONING)
        }
        return cls(flat[_LATENTS], tuple(flat[_GENERATORS].unbind()), Conditioning.from_tensors(conditioning))


def seeded_starts(
    process: DenoisingProcess,
    shape: Sequence[int],
    *,
    count: int,
    batch_size: int,
    seed: int,
    conditioning: Mapping[str, Tensor] | None = None,
) -> Iterator[Start]:
    """Yield batches of pure noise [*shape]; image k comes from seed + k.

    `conditioning` holds tensors [count, ...].
    """
    for first in range(0, count, batch_size):
        members = range(first, min(first + batch_size, count))
        yield seeded_start(process, shape, members, seed=seed, conditioning=conditioning)


def seeded_start(
    process: DenoisingProcess,
    shape: Sequence[int],
    members: range,
    *,
    seed: int,
    conditioning: Mapping[str, Tensor] | None = None,
) -> Start:
    """Return the pure noise [*shape] of some images; `conditioning` [count, ...] is that of all."""
    generators = seeded_generators(range(seed + members.start, seed + members.stop))
    latents = process.initial_latents(shape, generators)
    states = tuple(g.get_state() for g in generators)
    rows = Conditioning.of(conditioning or {}).rows(slice(members.start, members.stop))
    return Start(latents, states, rows)
