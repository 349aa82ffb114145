"""Take the tensors of a Signature out of a call of the network, as a captured CallForm says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accuquant.errors import SourceError, UsageError
from accuquant.networks.call_form import CallForm, Place, is_tensor, leaves, value_at
from accuquant.networks.equivalents import equivalent_arguments


def bound_arguments(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """Return the arguments of a call by the names of a forward, those of its **kwargs among them.

    Of a network with an equivalent (networks/equivalents.py) they are those of the equivalent.
    Raises SourceError for arguments that have no name.
    """
    bound = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) and name in bound:
            raise SourceError(
                "forward of the network",
                got=f"an argument '{name}' that is passed by its position alone",
                expected="arguments that have names",
                remedy="Give them names in the network's forward",
            )
    return equivalent_arguments(architecture, bound)


def undressed(value: Any, place: Place) -> Tensor:
    """Undo `Place.dressed`: return one tensor, without the axis that the signature has not.

    Raises UsageError for a list whose tensors have several shapes.
    """
    if place.rows and not is_tensor(value) and len({tuple(row.shape) for row in value}) > 1:
        raise UsageError(
            f"argument '{place.path[0]}' of the network",
            got="rows of several lengths in one batch",
            expected="rows of one shape: a graph has rectangular inputs",
            remedy="Give prompts of as many tokens each, or one image a batch without guidance",
        )
    tensor: Tensor = torch.stack(list(value)) if place.rows and not is_tensor(value) else value
    return tensor if place.unit_axis is None else tensor.squeeze(place.unit_axis)


def tensors_of_call(form: CallForm, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Return every tensor of a call by the names of the signature, the timestep among them.

    Raises UsageError where an argument that is no tensor is another than in the call that was captured.
    """
    given = {path: value for path, value in leaves(bound) if not _holds_tensors(value)}
    changed = sorted(
        {
            str(path[0])
            for path in given.keys() | form.constants.keys()
            if not _alike(given.get(path), form.constants.get(path))
        }
        - _of_tensors(form)
    )
    missing = {place.path[0] for place in form.tensors.values()} - bound.keys()
    held = {name for name, value in bound.items() if any(_holds_tensors(v) for _, v in leaves(value))}
    unknown = sorted(held - {place.path[0] for place in form.tensors.values()})
    if changed or missing or unknown:
        names = ", ".join(map(repr, (*changed, *sorted(map(str, missing)), *unknown)))
        raise UsageError(
            f"argument {names} of the network",
            got="another value than it was captured with",
            expected="the call that was calibrated: a graph has one value of what is no tensor",
            remedy="Sample at the size and with the choices of the calibration, or calibrate for these",
        )
    return {name: undressed(value_at(bound, place.path), place) for name, place in form.tensors.items()}


def _of_tensors(form: CallForm) -> set[str]:
    """Return the names of a timestep that is a plain number."""
    return {str(place.path[0]) for place in form.tensors.values() if len(place.path) == 1}


def _holds_tensors(value: Any) -> bool:
    return is_tensor(value) or (isinstance(value, list | tuple) and len(value) > 0)


def _alike(one: Any, other: Any) -> bool:
    """Compare constants: an empty container is as good as None, and JSON has no tuples."""
    return bool(one == other) or (one in ({}, [], (), None) and other in ({}, [], (), None))
