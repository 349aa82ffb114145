"""What processes have to have in common, so that it does not matter which of them computes a unit."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

import accuquant

#: Of these, another version computes other figures, or cannot read what travels.
_PACKAGES = ("cloudpickle", "diffusers", "numpy", "safetensors", "transformers")


def facts_here() -> dict[str, str]:
    """Return the versions that this process runs with."""
    facts = {
        "accuquant": accuquant.__version__,
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    return facts | {name: _version(name) for name in _PACKAGES}


def processor_here() -> str:
    """Return which instructions torch computes with: figures differ in their last digits between them."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Return what differs, as "torch 2.9.0 instead of 2.13.0, ...", or ""."""
    return ", ".join(
        f"{name} {found.get(name, 'missing')} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
