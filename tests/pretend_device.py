"""A device that is not there: prove on a CPU that code keeps all its tensors on one device.

Inside `pretend_device()` a tensor that was moved to torch.device("meta") keeps its values (on the CPU,
underneath), reports the device "meta", and refuses to meet a CPU tensor of one dimension or more, as CUDA
would. So calibration, rollouts, learning and verification can run on "another device" in CI, give the CPU's
figures but for float rounding, and fail where a `.to(device)` is missing.

    with pretend_device() as device:
        network.to(device)
        network(x.to(device), t.to(device))  # fine
        network(x, t.to(device))  # RuntimeError: tensors on meta and cpu

"meta" is used because torch has a device guard for it in every build ("cuda" and "privateuseone" have none in
a CPU build: autograd stops there). Limits: random numbers are the CPU's; `.numpy()` and `.tolist()` of a
pretended tensor are refused, and torch.tensor(..., device=device) makes a real "meta" tensor: use `.to`. What
is proven is the placement of tensors, not speed, memory or CUDA's kernels: tests marked `gpu` are for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}


class Pretended(torch.Tensor):
    """A tensor on the pretended device; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        outer: Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        outer.held = inner
        return outer

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a function, and wants a method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]  # torch leaves its own untyped
        return f"Pretended({self.held!r})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Make torch.device("meta") a device that computes, for modules and tensors moved inside the block."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    pretended = any(isinstance(t, Pretended) for t in tensors)
    strangers = [tuple(t.shape) for t in tensors if not isinstance(t, Pretended) and t.dim() > 0]
    if pretended and strangers and func not in _MOVES:
        raise RuntimeError(f"{func}: tensors on {DEVICE} and cpu, the latter with shapes {strangers}")
    wanted = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(_inner, args), dict(tree_map(_inner, kwargs))
    if wanted is not None and torch.device(wanted).type == DEVICE.type:
        inner_kwargs["device"] = torch.device("cpu")
    out = func(*inner_args, **inner_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    if any(
        r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns
    ):  # in place, or out=
        outer = {id(_inner(t)): t for t in tensors}
        outs = tuple(outer.get(id(o), o) for o in (out if isinstance(out, tuple | list) else (out,)))
        return outs if isinstance(out, tuple | list) else outs[0]
    there = pretended if wanted is None else torch.device(wanted).type == DEVICE.type
    if not there:
        return out
    return tree_map(
        lambda t: Pretended(t) if isinstance(t, torch.Tensor) and not isinstance(t, Pretended) else t, out
    )
