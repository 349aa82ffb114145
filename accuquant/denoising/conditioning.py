"""What a network takes beside sample and timestep, one row a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accuquant.denoising.pasting import Pasting

#: (sample, timestep, conditioning by name) -> prediction
ConditionedNetwork = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
_CHANNELS, _ROWS, _SHARED, _PASTED = "channels", "tensors.", "shared.", "pasted."
_AXIS = "axis_of_channels"


@dataclass(frozen=True)
class BoundNetwork:
    """A network as a function of sample [copies * N, C, H, W] and timestep, for N trajectories.

    `pasting` is what the denoising step pastes into the latents of these trajectories.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    pasting: Pasting | None = None

    def __call__(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the network's prediction."""
        return self.predict(sample, timestep)


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of N trajectories under a guidance that makes `copies` predictions of each.

    `tensors` maps the names in the network's Signature to [N, copies, ...]: the text under classifier-free
    guidance is [N, 2, tokens, width], the negative prompt first. `channels` [N, copies, C', H, W] are
    appended to the sample's (inpainting: the mask and the masked image), along `channel_axis` of the batch,
    which may be 2 where latents are packed. `shared` tensors have no rows: all
    trajectories get the same (Flux: the positions of patches and tokens). `pasting` does not condition the
    network, but the step around it.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    channels: Tensor | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    pasting: Pasting | None = None
    channel_axis: int = 1

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Return a conditioning without guidance from tensors [N, ...]."""
        return cls({name: tensor.unsqueeze(1) for name, tensor in tensors.items()})

    @classmethod
    def from_batch(
        cls,
        tensors: Mapping[str, Tensor],
        channels: Tensor | None,
        copies: int,
        shared: Mapping[str, Tensor] | None = None,
        pasting: Pasting | None = None,
        channel_axis: int = 1,
    ) -> Conditioning:
        """Read tensors [copies * N, ...] as a pipeline hands them to its network."""
        split = {name: _per_trajectory(tensor, copies) for name, tensor in tensors.items()}
        further = None if channels is None else _per_trajectory(channels, copies)
        return cls(split, further, shared or {}, pasting, channel_axis)

    def rows(self, members: slice | list[int]) -> Conditioning:
        """Return the conditioning of some of the trajectories."""
        tensors = {name: tensor[members] for name, tensor in self.tensors.items()}
        channels = None if self.channels is None else self.channels[members]
        pasting = None if self.pasting is None else self.pasting.rows(members)
        return Conditioning(tensors, channels, self.shared, pasting, self.channel_axis)

    def to(self, device: torch.device) -> Conditioning:
        """Return the same on `device`."""
        return Conditioning(
            {name: tensor.to(device) for name, tensor in self.tensors.items()},
            None if self.channels is None else self.channels.to(device),
            {name: tensor.to(device) for name, tensor in self.shared.items()},
            None if self.pasting is None else self.pasting.to(device),
            self.channel_axis,
        )

    def arguments(self) -> dict[str, Tensor]:
        """Return the tensors as the network takes them, [copies * N, ...], the copies one after another."""
        return {**{name: _per_call(tensor) for name, tensor in self.tensors.items()}, **self.shared}

    def append_channels(self, sample: Tensor) -> Tensor:
        """Return sample [copies * N, C, H, W], or patches, with the further channels behind its own."""
        if self.channels is None:
            return sample
        return torch.cat([sample, _per_call(self.channels)], dim=self.channel_axis)

    def bind(self, network: ConditionedNetwork) -> BoundNetwork:
        """Return `network` as a function of sample [copies * N, C, H, W] and timestep."""
        arguments = self.arguments()

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            return network(self.append_channels(sample), timestep, arguments)

        return BoundNetwork(predict, self.pasting)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return one flat dict of tensors; `from_tensors` reads it back."""
        flat = {f"{_ROWS}{name}": tensor for name, tensor in self.tensors.items()}
        flat |= {f"{_SHARED}{name}": tensor for name, tensor in self.shared.items()}
        if self.pasting is not None:
            flat |= {f"{_PASTED}{name}": tensor for name, tensor in self.pasting.to_tensors().items()}
        if self.channels is None:
            return flat
        return {**flat, _CHANNELS: self.channels, _AXIS: torch.tensor(self.channel_axis)}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor]) -> Conditioning:
        """Read what `to_tensors` returned."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): t for key, t in flat.items() if key.startswith(prefix)}

        pasting = Pasting.from_tensors(under(_PASTED))
        axis = int(flat[_AXIS]) if _AXIS in flat else 1
        return cls(under(_ROWS), flat.get(_CHANNELS), under(_SHARED), pasting, axis)


def _per_trajectory(tensor: Tensor, copies: int) -> Tensor:
    return tensor.reshape(copies, -1, *tensor.shape[1:]).transpose(0, 1).contiguous()


def _per_call(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).flatten(0, 1)
