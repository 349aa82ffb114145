"""Class labels for the images of a class-conditional pixel pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.runner import Array

_NAME = "class_labels"


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
    classes = _number_of_classes(folder / manifest.component / "config.json")
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
        classes = json.loads(path.read_text(encoding="utf-8")).get("num_class_embeds")
        return None if classes is None else int(classes)
    except (OSError, TypeError, ValueError, AttributeError) as fault:
        raise EngineError(
            f"configuration '{path}'",
            got=f"{type(fault).__name__}: {str(fault).splitlines()[0]}",
            expected="the JSON that diffusers writes",
            remedy="Copy the whole exported folder, or run `accuquant export` again",
        ) from fault


def _listed(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:4]))
    return f"{shown}, ..." if len(labels) > 4 else shown


def _unfit(got: str, expected: str, remedy: str) -> UsageError:
    return UsageError("class labels", got=got, expected=expected, remedy=remedy)
