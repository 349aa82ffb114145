"""What each layer's rounding was based on, and which layers got less than the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from accuquant.networks.network import weight_shape

from .input_moments import Moments
from .rounding import blocks_of, shrinkage
from .unfolding import group_count, input_width

#: Names that a line gives; the recipe has all.
_NAMED = 4
#: Distinct inputs for each column of a weight from which a covariance is well known.
_ENOUGH = 2


def rounding_facts(layer: nn.Module, moments: Moments) -> dict[str, float]:
    """Return what a layer's rounding was based on, as a recipe keeps it.

    `inputs` of an output, `groups` of the layer, `blocks` that a group's inputs fell into; `rows` of inputs
    that were looked at, how many of them were `distinct`, and the `shrinkage` of the covariance.
    """
    return facts_of(layer, moments.rows, moments.distinct)


def facts_of(layer: nn.Module, rows: int, distinct: int) -> dict[str, float]:
    """Return the same of a layer that `rows` are rounded by, `distinct` of which differ."""
    groups, inputs = group_count(layer), input_width(layer)
    outputs = weight_shape(layer).numel() // (groups * inputs)
    return {
        "inputs": inputs,
        "groups": groups,
        "blocks": len(blocks_of(groups, outputs, inputs)) // groups,
        "rows": rows,
        "distinct": distinct,
        "shrinkage": shrinkage(inputs, distinct),
    }


def care_notes(calibration: Mapping[str, Any], *, seen: str = "were seen") -> tuple[str, ...]:
    """Return a sentence for each reason why layers got less than the others.

    `calibration` is a recipe's; one without facts on the rounding has no such sentence. `seen` is the verb,
    of what has happened or will.
    """
    facts: Mapping[str, Mapping[str, float]] = calibration.get("rounding", {})
    few = [name for name, fact in facts.items() if fact["distinct"] < _ENOUGH * fact["inputs"]]
    split = [name for name, fact in facts.items() if fact["blocks"] > 1]
    notes = []
    if few:
        least = min(few, key=lambda name: facts[name]["distinct"] / facts[name]["inputs"])
        notes.append(
            f"Few distinct inputs {seen}, under {_ENOUGH} for each column of the weight, to round "
            f"{_named(few)} by; fewest in {least}: {facts[least]['distinct']} for "
            f"{facts[least]['inputs']} columns. More prompts or trajectories help."
        )
    if split:
        notes.append(
            f"Too wide for one covariance: rounding errors cancel inside of blocks of columns only in "
            f"{_named(split)}."
        )
    return tuple(notes)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    count = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    return f"{count} ({shown}{', ...' if len(names) > _NAMED else ''})"
