"""A safetensors file whose tensors are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name: each access maps the file, copies what is wanted, unmaps it.

    Nothing stays in memory or open between two accesses, so that ten files cost as much as ten thousand, and
    a file can be replaced or removed at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118, no mapping
                raise KeyError(name)
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def all(self) -> dict[str, Tensor]:
        """Return all tensors."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, no mapping

    def row(self, name: str, index: int) -> Tensor:
        """Return one row of a tensor [N, ...]; an index beyond the last row means the last one."""
        with safe_open(self.path, framework="pt") as file:
            rows = file.get_slice(name)
            index = min(index, rows.get_shape()[0] - 1)
            tensor: Tensor = rows[index : index + 1][0].clone()
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        with safe_open(self.path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def metadata(self) -> dict[str, str]:
        """Return the texts in the file's header."""
        with safe_open(self.path, framework="pt") as file:
            return file.metadata() or {}

    def whole(self) -> bool:
        """Say whether there is a file that was written to its end."""
        try:
            self.metadata()
        except (FileNotFoundError, SafetensorError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        with safe_open(self.path, framework="pt") as file:
            return iter(list(file.keys()))

    def __len__(self) -> int:
        return sum(1 for _ in self)
