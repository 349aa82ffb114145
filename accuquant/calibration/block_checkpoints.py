"""Checkpoints by block: activations are computed a second time where keeping them would not fit."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import device_of
from accuquant.networks.room import free_memory

from .trajectory import TrajectoryBatch, bound

#: Where a call would keep more than this share of the free memory, blocks are checkpointed.
_SHARE = 0.5


def checkpoint_blocks(
    network: nn.Module, process: DenoisingProcess, batch: TrajectoryBatch, choice: bool | None = None
) -> bool:
    """Let a simulated network keep only what goes into its blocks, and compute the rest again for gradients.

    `choice` None does so where one call for `batch` would keep more than half of the memory that is free; a
    device that does not tell what is free keeps everything. The gradients are the same bit for bit, in about
    a third more time. Returns whether blocks are checkpointed; networks that are not diffusers' cannot be.

    A recomputed block quantizes with the step group of the last call: a gradient must not run through steps
    of several groups at once (`exact` over a group and `checkpoint` over a trajectory do not).
    """
    enable: Any = getattr(network, "enable_gradient_checkpointing", None)
    if enable is None:
        return False
    if choice is None:
        free = free_memory(device_of(network))
        choice = free is not None and bytes_kept(network, process, batch) > _SHARE * free
    if choice:
        enable()
    return choice


def bytes_kept(network: nn.Module, process: DenoisingProcess, batch: TrajectoryBatch) -> int:
    """Return how many bytes a call for `batch` keeps for its gradient, measured with its first trajectory."""
    device, first = device_of(network), slice(0, 1)
    own = {_place(tensor) for tensor in chain(network.parameters(), network.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    process.reset()
    sample = process.network_sample(batch.latents[0][first].to(device), 0).requires_grad_(True)
    predict = bound(network, batch.conditioning.rows(first).to(device))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = predict(sample, torch.tensor(process.timesteps[0]))
    del output  # until here the graph held what was counted: no place was used twice
    process.reset()
    return len(batch) * sum(kept.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
