"""Class labels for the images of a class-conditional pixel pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from accuquant._util.facts import FactsError, read_facts
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.runner import Array

_NAME = "class_labels"


@dataclass(frozen=True)
class _NetworkFacts:
    num_class_embeds: Annotated[int, Meta(ge=1, le=2**31)] | None = None


def labels_of_images(
    folder: Path, manifest: Manifest, count: int, chosen: Sequence[int] | None
) -> Array | None:
    """Return one label for each of `count` images, int64 [count], or None for a network without classes.

    `chosen` has one label an image; None spreads them evenly, as calibration does: image k gets class
    k modulo the number of classes. Raises UsageError for labels that do not fit the network, and where none
    are chosen and the network's configuration does not say how many classes there are.
    """
    if _NAME not in [spec.name for spec in manifest.signature.conditioning]:
        if chosen is not None:
            raise _unfit(f"labels {_listed(chosen)}", "none: this network takes no classes", "Leave them out")
        return None
    classes = _number_of_classes(manifest.config_path(folder))
    if chosen is None:
        if classes is None:
            raise _unfit("none", "one for each image: this network takes classes", "Give --class-labels")
        return np.arange(count, dtype=np.int64) % classes
    if len(chosen) != count:
        remedy = "Give one class label for each image"
        raise _unfit(f"{len(chosen)} labels", f"{count}, one an image", remedy)
    wrong = [label for label in chosen if label < 0 or (classes is not None and label >= classes)]
    if wrong:
        known = "0 and more" if classes is None else f"0 to {classes - 1}"
        raise _unfit(
            f"label {wrong[0]}", f"labels from {known}", "Give labels that the network was trained with"
        )
    return np.array(chosen, np.int64)


def _number_of_classes(path: Path) -> int | None:
    try:
        return read_facts(path, _NetworkFacts).num_class_embeds
    except (OSError, FactsError) as fault:
        raise EngineError(
            f"configuration '{path}'",
            got=str(fault),
            expected="the JSON that diffusers writes",
            remedy="Copy the whole exported folder, or run `accuquant export` again",
        ) from fault


def _listed(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:4]))
    return f"{shown}, ..." if len(labels) > 4 else shown


def _unfit(got: str, expected: str, remedy: str) -> UsageError:
    return UsageError("class labels", got=got, expected=expected, remedy=remedy)
