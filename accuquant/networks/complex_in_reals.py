"""Let rotary embeddings that multiply complex numbers be traced: ONNX has no operators for these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ComplexPair:
    """A complex tensor as two real ones, with what diffusers' rotary embeddings do to it and no more."""

    real: Tensor
    imag: Tensor

    def __mul__(self, other: ComplexPair) -> ComplexPair:
        return ComplexPair(
            self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real
        )

    def unsqueeze(self, axis: int) -> ComplexPair:
        """Return the same with another axis of extent 1."""
        return ComplexPair(self.real.unsqueeze(axis), self.imag.unsqueeze(axis))


def _from_last_axis(values: Tensor) -> ComplexPair:
    real, imag = values.unbind(-1)
    return ComplexPair(real, imag)


def _to_last_axis(values: Any) -> Tensor:
    return torch.stack([values.real, values.imag], dim=-1)


#: Functions of torch that make complex tensors, or take them apart.
_STAND_INS: dict[str, Callable[..., Any]] = {
    "complex": ComplexPair,
    "view_as_complex": _from_last_axis,
    "view_as_real": _to_last_axis,
}


@contextmanager
def complex_in_reals() -> Iterator[None]:
    """Let torch.complex, view_as_complex and view_as_real work on pairs of real tensors inside the block."""
    own = {name: getattr(torch, name) for name in _STAND_INS}
    try:
        for name, stand_in in _STAND_INS.items():
            setattr(torch, name, stand_in)
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)
