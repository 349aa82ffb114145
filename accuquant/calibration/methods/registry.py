"""The methods by name. To add one: write its file, and name it here and in accuquant/cli/calibrate.py."""

from __future__ import annotations

from collections.abc import Mapping

from accuquant.errors import unknown_name

from . import accuquant, minmax, mse, pcr, percentile, ptq4dm, ptqd, q_diffusion, smoothquant, tfmq
from .method import Method

METHODS: Mapping[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (accuquant, minmax, percentile, mse, q_diffusion, ptq4dm, tfmq, ptqd, pcr, smoothquant)
}


def method_named(name: str) -> Method:
    """Return the method called `name`; raise UsageError that lists them where there is none."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
