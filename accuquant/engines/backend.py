"""Which TensorRT library compiles: tensorrt, or tensorrt_rtx."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from accuquant.errors import MissingDependencyError, unknown_name

BackendName = Literal["tensorrt", "tensorrt_rtx"]
#: Library -> (extra that installs it, oldest version that builds strongly typed networks as we do).
_LIBRARIES: dict[BackendName, tuple[str, tuple[int, int]]] = {
    "tensorrt": ("gpu", (10, 12)),
    "tensorrt_rtx": ("tensorrt-rtx", (1, 1)),
}
BACKENDS = ("auto", *_LIBRARIES)


@dataclass(frozen=True)
class Backend:
    """An installed TensorRT library.

    `compiles_ahead` says whether it can compile for a GPU that is not in this machine.
    """

    name: BackendName
    version: str

    @property
    def compiles_ahead(self) -> bool:
        """Whether engines can be compiled for a GPU that is not here."""
        return self.name == "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def resolve_backend(name: str = "auto") -> Backend:
    """Return the library called `name`; "auto" takes tensorrt where it is installed, else tensorrt_rtx.

    Nothing is imported. Raises UsageError for an unknown name, MissingDependencyError where the library
    is not installed or too old.
    """
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    candidates = [library for library in _LIBRARIES if name in ("auto", library)]
    for library in candidates:
        if importlib.util.find_spec(library) is not None:
            return _checked(library)
    extras = " or ".join(f"pip install 'accuquant[{_LIBRARIES[library][0]}]'" for library in candidates)
    raise MissingDependencyError(
        f"backend {name}",
        got="no such package",
        expected=" or ".join(candidates),
        remedy=f"Run: {extras} (tensorrt_rtx compiles without a GPU)",
    )


def _checked(library: BackendName) -> Backend:
    extra, oldest = _LIBRARIES[library]
    found = _installed_version(library)
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < oldest:
        raise MissingDependencyError(
            f"backend {library}",
            got=f"version {found}",
            expected=f"{oldest[0]}.{oldest[1]} or newer",
            remedy=f"Run: pip install --upgrade 'accuquant[{extra}]'",
        )
    return Backend(library, found)


def _installed_version(library: str) -> str:
    # A package from NVIDIA's archives has no metadata under this name: only then is it imported.
    try:
        return version(library.replace("_", "-"))
    except PackageNotFoundError:
        return str(importlib.import_module(library).__version__)
