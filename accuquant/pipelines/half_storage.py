"""Which of a pipeline's parts have their files in half precision."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from accuquant.pipelines.loading import weight_files

_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def half_type_of(files: Iterable[Path]) -> torch.dtype | None:
    """Return float16 or bfloat16 where every tensor of a model's .safetensors files has it, else None."""
    from safetensors import safe_open

    types: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            types |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, no mapping
    return _HALVES.get(next(iter(types))) if len(types) == 1 else None


def half_type_of_part(folder: Path, variant: str | None) -> torch.dtype | None:
    """Return the half-precision type of all weights in a part's files of `variant`; None for others."""
    files = [path for path, kind in weight_files(folder).items() if kind == variant]
    return half_type_of(path for path in files if path.suffix == ".safetensors")
