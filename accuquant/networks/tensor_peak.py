"""How much memory the tensors take that some work makes, on any device and without a second process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .device import device_of


def peak_of(network: torch.nn.Module, work: Callable[[], object]) -> int:
    """Return the bytes that `work` takes at its highest where `network` is, beyond what is there before it.

    On CUDA that is the allocator's own count. Elsewhere it is the tensors that torch's operators return,
    without what an operator needs inside.
    """
    device = device_of(network)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with _Tensors() as tensors:
        work()
    return int(tensors.peak)


class _Tensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of the base class
    """Counts the bytes of the storages that operators return inside the block, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {_key(tensor) for tensor in tree_iter((args, kwargs or {})) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            # a view, and what is changed in place, is no new memory
            if isinstance(tensor, Tensor) and _key(tensor) not in known:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
