"""Run a smaller batch in an engine of a fixed one: which inputs grow, and by how many rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from accuquant.networks.signature import Signature, TensorSpec
from accuquant.runtime.runner import Array


def batched_names(signature: Signature) -> frozenset[str]:
    """Return the inputs that have one row an image: those whose first extent is that of the sample."""
    batch = signature.sample.shape[0]
    return frozenset(
        spec.name for spec in signature.inputs if isinstance(batch, str) and batch in spec.shape[:1]
    )


def fixed_batch(signature: Signature, specs: Sequence[TensorSpec]) -> int | None:
    """Return the batch that an engine with the inputs `specs` was built for, or None where it takes any."""
    for spec in specs:
        if spec.name == signature.sample.name and isinstance(spec.shape[0], int):
            return spec.shape[0]
    return None


def missing_rows(signature: Signature, specs: Sequence[TensorSpec], shape: Sequence[int]) -> int:
    """Return how many rows a sample of `shape` lacks; 0 where it fits or is too large for the engine."""
    batch = fixed_batch(signature, specs)
    return batch - shape[0] if batch is not None and shape and 0 < shape[0] < batch else 0


def pad_rows(feeds: Mapping[str, Array], names: Collection[str], missing: int) -> dict[str, Array]:
    """Repeat the last row of each of `names` `missing` times: images do not depend on each other."""
    return {
        name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if name in names else array
        for name, array in feeds.items()
    }
