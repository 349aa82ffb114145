"""Nested values with tensors among them, as one file, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accuquant._util.files import atomic_write

#: Tensors, numbers, texts, truth values and None, in lists and mappings.
Tree = Any
_KEY = "tree"
_TENSOR, _MAPPING = "tensor", "mapping"


def write_tree(path: Path, tree: Tree) -> None:
    """Write `tree` to `path`, atomically. Tuples become lists; tensors come back on the CPU.

    Numbers keep every bit, and keys of mappings their type. A tensor that occurs twice is stored once.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def encode(value: Tree) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in names:
                names[id(value)] = str(len(names))
                tensors[names[id(value)]] = storable(value)
            return {_TENSOR: names[id(value)]}
        if isinstance(value, Mapping):
            return {_MAPPING: [[key, encode(item)] for key, item in value.items()]}
        return [encode(item) for item in value] if isinstance(value, list | tuple) else value

    text = json.dumps(encode(tree))
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: text})


def read_tree(path: Path) -> Tree:
    """Return what `write_tree` wrote; None where there is no file, or no whole one."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[_KEY]
            # copies: what is mapped cannot be replaced or removed everywhere
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, no mapping
    except (FileNotFoundError, SafetensorError, KeyError):
        return None

    def decode(value: Any) -> Tree:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: decode(item) for key, item in value[_MAPPING]}

    return decode(json.loads(text))


def size_of(tree: Tree) -> int:
    """Return how many bytes the tensors of `tree` take."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(size_of, items))


def at_home(tree: Tree) -> Tree:
    """Return `tree` with every tensor on the CPU, and in memory of its own: a view brings nothing along."""
    if isinstance(tree, Tensor):
        return storable(tree)
    if isinstance(tree, Mapping):
        return {key: at_home(item) for key, item in tree.items()}
    return [at_home(item) for item in tree] if isinstance(tree, list | tuple) else tree


def storable(tensor: Tensor) -> Tensor:
    """Return `tensor` on the CPU, contiguous, and in memory that is its own: safetensors wants that."""
    there = tensor.detach().cpu().contiguous()
    return (
        there
        if there.untyped_storage().nbytes() == there.nbytes
        else there.clone(memory_format=torch.contiguous_format)
    )
