"""How much memory there is: on a device, and in main memory, of which a container may have a part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from .device import device_of

#: Where Linux says what a container may take, and takes (cgroup v2).
_LIMIT, _TAKEN = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Room:
    """Bytes that this process holds and may still take: where the network is, and in main memory.

    Only a CUDA device has memory of its own (`gpu`); elsewhere `held` and `free` are main memory's too.
    """

    gpu: bool
    held: int
    free: int
    held_main: int
    free_main: int

    @classmethod
    def of(cls, network: torch.nn.Module) -> Room:
        """Look where `network` is."""
        device = device_of(network)
        held, free = int(psutil.Process().memory_info().rss), free_main_memory()
        if device.type != "cuda":
            return cls(False, held, free, held, free)
        on_device = torch.cuda.memory_allocated(device), int(torch.cuda.mem_get_info(device)[0])
        return cls(True, *on_device, held, free)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that `device` has left, None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_main_memory() if device.type == "cpu" else None


def free_main_memory() -> int:
    """Return the bytes that this process can still take without swapping."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, taken = int(_LIMIT.read_text()), int(_TAKEN.read_text())
    except (OSError, ValueError):  # no cgroup, or no limit: "max"
        return available
    return max(0, min(available, limit - taken))
