"""Pages of memory that nobody needs for a while, offered to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

from torch import Tensor, nn

from accuquant.networks.network import held_weight, quantizable_layers

#: Linux 5.4: reclaim these pages now; what was changed in them is written to swap first, not lost.
_MADV_PAGEOUT = 21


def give_back_weights(network: nn.Module, names: Iterable[str]) -> None:
    """Let the system drop the float weights of the named layers: levels stand for them while learning."""
    layers = quantizable_layers(network)
    give_back(held_weight(layers[name]) for name in names)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Let the system drop the pages of `tensors`, which keep their values.

    Weights that are mapped from a file are read from it again when somebody asks for them. On the CPU of a
    Linux system; elsewhere, and where the system does not want to, nothing happens.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            size = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                madvise(first, size, _MADV_PAGEOUT)
