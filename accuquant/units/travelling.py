"""How what a unit computes travels to another process: by value, but for the large things on either side."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .per_worker import PerWorker

#: Networks that every process has opened for itself, by names that all agree on.
Roots = Mapping[str, nn.Module]
_MODULE, _TENSOR, _MADE = "module", "tensor", "made"


@dataclass
class Parcel:
    """A pickled object, and by their tokens the pickled functions that make what is PerWorker."""

    data: bytes
    parts: dict[str, bytes] = field(default_factory=dict)


def pack(thing: Any, roots: Roots) -> Parcel:
    """Pickle `thing`, functions that were defined in others among it.

    Modules and tensors of `roots` travel as their names. Raises TypeError where something cannot travel.
    """
    parcel = Parcel(b"")
    parcel.data = _pickled(thing, _names(roots), parcel.parts)
    return parcel


class Unpacker:
    """Brings back what `pack` packed, in a process with `roots` of its own."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._made: dict[str, PerWorker[Any]] = {}

    def unpack(self, data: bytes, part: Callable[[str], bytes]) -> Any:
        """Return the thing. What is PerWorker stays as it is from one to the next that refers to it.

        `part` gives the function that makes such a value, by its token.
        """
        wanted: dict[str, PerWorker[Any]] = {}

        def load(data: bytes) -> Any:
            unpickler = pickle.Unpickler(io.BytesIO(data))
            unpickler.persistent_load = find  # type: ignore[method-assign]
            return unpickler.load()

        def find(name: tuple[str, ...]) -> Any:
            kind, *rest = name
            if kind == _MADE:
                token = rest[0]
                if token not in wanted:
                    # before its function is loaded: that may refer to another, never to itself
                    wanted[token] = self._made.get(token) or PerWorker(load(part(token)))
                return wanted[token]
            module = self._roots[rest[0]].get_submodule(rest[1])
            return module if kind == _MODULE else getattr(module, rest[2])

        thing = load(data)
        self._made = wanted
        return thing

    def forget(self) -> None:
        """Let what is PerWorker be made anew: a unit that failed may have left it half changed."""
        for made in self._made.values():
            made.forget()


def _names(roots: Roots) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for root, network in roots.items():
        for path, module in network.named_modules():
            names.setdefault(id(module), (_MODULE, root, path))
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                names.setdefault(id(tensor), (_TENSOR, root, path, name))
    return names


def _pickled(thing: Any, names: Mapping[int, tuple[str, ...]], parts: dict[str, bytes]) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> tuple[str, ...] | None:
            if isinstance(obj, PerWorker):
                if obj.token not in parts:
                    parts[obj.token] = b""
                    parts[obj.token] = _pickled(obj.make, names, parts)
                return _MADE, obj.token
            return names.get(id(obj)) if isinstance(obj, nn.Module | Tensor) else None

    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
    return file.getvalue()
