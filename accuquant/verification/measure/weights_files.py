"""Where the weights lie that the networks of metrics are made of: AccuQuant ships none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from accuquant.errors import UsageError, unknown_name

#: A network that a metric needs -> the environment variable that names its file or folder.
VARIABLES = {
    "inception": "ACCUQUANT_INCEPTION",
    "clean-fid": "ACCUQUANT_CLEAN_FID",
    "lpips": "ACCUQUANT_LPIPS",
    "clip": "ACCUQUANT_CLIP",
    "image-reward": "ACCUQUANT_IMAGE_REWARD",
}
#: No file was named.
NONE: Mapping[str, Path] = {}


def weights_file(name: str, given: Mapping[str, Path] = NONE) -> Path | None:
    """Return the file or folder of the network `name`: as given, else of the environment, else None.

    Raises UsageError where nothing lies there.
    """
    variable = VARIABLES[name]
    named = given.get(name) or os.environ.get(variable) or None
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.exists():
        raise UsageError(
            f"weights of '{name}'",
            got=f"'{path}', where nothing is",
            expected="a file or a folder that is there",
            remedy=f"Correct --weights {name}=PATH or {variable}",
        )
    return path


def check_names(given: Mapping[str, Path]) -> None:
    """Raise UsageError for weights of a network that no metric knows."""
    for name in given:
        if name not in VARIABLES:
            raise unknown_name("weights", name, VARIABLES)


def where_to_put(name: str) -> str:
    """Return how a user says where the weights of `name` lie."""
    return f"--weights {name}=PATH, or {VARIABLES[name]}=PATH in the environment"
