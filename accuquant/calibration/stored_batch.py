"""Trajectories in a file: a step is read when it is needed."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from accuquant._util.files import atomic_write
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import ProcessState, moved_states
from accuquant.networks.device import CPU
from accuquant.units.tensor_tree import storable

from .state_tensors import state_from_tensors, states_to_tensors
from .tensor_file import TensorFile
from .trajectory import TrajectoryBatch

_LATENTS, _CONDITIONING, _STATES, _END = "latents", "conditioning.", "states.", "end"
_HISTORY = "history"


def save_batch(path: Path, batch: TrajectoryBatch) -> None:
    """Write a batch to `path`, atomically: latents, conditioning, and what the sampler remembered."""
    states, history = states_to_tensors(batch.states)
    tensors = {
        _LATENTS: batch.latents,
        **({} if batch.end is None else {_END: batch.end}),
        **{f"{_CONDITIONING}{name}": tensor for name, tensor in batch.conditioning.to_tensors().items()},
        **{f"{_STATES}{name}": tensor for name, tensor in states.items()},
    }
    with atomic_write(path) as temporary:
        save_file(
            {name: storable(tensor) for name, tensor in tensors.items()},
            temporary,
            metadata={_HISTORY: history},
        )


class StoredBatch(TrajectoryBatch):
    """A batch that `save_batch` wrote, of which nothing is in memory but what was asked for last.

    `latents` and `states` read all steps; `latents_before` and `state_before` one. The conditioning stays
    for as long as this object does: bring a batch `to` a device for as long as it is worked with.
    """

    def __init__(self, path: Path, device: torch.device = CPU) -> None:
        self.file, self.device = TensorFile(path), device

    def __repr__(self) -> str:
        return f"StoredBatch({self.file.path})"

    @cached_property
    def _count(self) -> int:
        return self.file.shape(_LATENTS)[1]

    def __len__(self) -> int:
        return self._count

    @property
    def latents(self) -> Tensor:
        """All latents [T + 1, B, C, H, W], read anew."""
        return self.file[_LATENTS].to(self.device)

    @property
    def states(self) -> tuple[ProcessState, ...]:
        """What the sampler remembered before every step [T], read anew."""
        return tuple(self.state_before(step) for step in range(self._steps))

    @property
    def end(self) -> Tensor | None:
        """The images that a generator's one step ends with, read anew."""
        return self.file[_END].to(self.device) if _END in self.file else None

    @cached_property
    def _steps(self) -> int:
        return len(json.loads(self.file.metadata()[_HISTORY]))

    @cached_property
    def conditioning(self) -> Conditioning:
        """What the network is given beside the latents."""
        names = [name for name in self.file if name.startswith(_CONDITIONING)]
        flat = {name.removeprefix(_CONDITIONING): self.file[name] for name in names}
        return Conditioning.from_tensors(flat).to(self.device)

    def latents_before(self, step: int) -> Tensor:
        """Return the latents [B, C, H, W] before `step`, or after the last step."""
        if step == self._steps and (end := self.end) is not None:
            return end
        return self.file.row(_LATENTS, step).to(self.device)

    def state_before(self, step: int) -> ProcessState:
        """Return what the sampler remembered before `step`."""
        history = json.loads(self.file.metadata()[_HISTORY])[step]
        random = self.file.row(f"{_STATES}random", step)
        state = state_from_tensors(random, history, lambda name: self.file[f"{_STATES}{name}"])
        return moved_states([state], self.device)[0]

    def to(self, device: torch.device) -> StoredBatch:
        """Return the same on `device`: another object, which reads for itself."""
        return StoredBatch(self.file.path, device)
