"""See what a pipeline calls its control networks with, just before it calls the UNet with their residuals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.errors import CalibrationError
from accuquant.networks.call_form import is_tensor
from accuquant.networks.call_tensors import bound_arguments
from accuquant.networks.control_signature import DOWN, IMAGE, MID, SCALE, image_names
from accuquant.networks.controlled import controls_of
from accuquant.pipelines.diffusers_internals import replaced

#: What a control network is called with that the UNet is not.
_OWN = (IMAGE, SCALE, "guess_mode", "return_dict")


class ControlCalls:
    """The last call of each control network of a pipeline."""

    def __init__(self, pipeline: str, nets: tuple[nn.Module, ...]) -> None:
        self._pipeline, self._nets = pipeline, nets
        self._calls: list[dict[str, Any]] = []

    @classmethod
    def of(cls, pipe: Any) -> ControlCalls:
        """Return those of a pipeline."""
        return cls(type(pipe).__name__, controls_of(pipe.controlnet))

    @contextmanager
    def watching(self, *, real: bool) -> Iterator[None]:
        """Note the calls inside the block; without `real` the networks are spared and give nothing."""

        def noting(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            bound = bound_arguments(inspect.signature(forward), args, kwargs, type(self._nets[0]).__name__)
            self._calls = [*self._calls[-len(self._nets) + 1 :], bound] if len(self._nets) > 1 else [bound]
            return forward(*args, **kwargs) if real else ([], torch.zeros(()))

        with ExitStack() as stack:
            for net in self._nets:
                stack.enter_context(replaced(net, "forward", noting))
            yield

    def as_one_call(self, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the UNet's call without residuals, and what made those in their place.

        Raises CalibrationError where the control networks were called with anything else than the UNet.
        """
        shared = {name: value for name, value in bound.items() if name not in (DOWN, MID)}
        if len(self._calls) != len(self._nets):
            raise self._refused("no call of them before that of the UNet")
        for call in self._calls:
            self._check(call, bound)
        images = [call[IMAGE] for call in self._calls]
        scales = torch.tensor([float(call.get(SCALE, 1.0)) for call in self._calls])
        named = zip(image_names(len(images)), images, strict=True)
        return {**shared, **dict(named), SCALE: scales.to(images[0].device)}

    def _check(self, call: Mapping[str, Any], bound: Mapping[str, Any]) -> None:
        if call.get("guess_mode"):
            raise self._refused("guess_mode, in which residuals of half of the rows are zero")
        differing = [
            name
            for name, value in call.items()
            if name not in _OWN and not _same(value, _shortened(bound.get(name), value))
        ]
        if differing:
            raise self._refused(f"another {differing[0]} than the UNet")

    def _refused(self, got: str) -> CalibrationError:
        return CalibrationError(
            f"pipeline {self._pipeline}, control networks",
            got=got,
            expected="a call with what the UNet is called with, and an image",
            remedy="Switch off what else the pipeline does with them",
        )


def _shortened(value: Any, like: Any) -> Any:
    """Return a sample with the channels of `like`: an inpainting UNet has more than its control network."""
    if isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim == like.ndim == 4:
        return value[:, : like.shape[1]]
    return value


def _same(one: Any, other: Any) -> bool:
    if is_tensor(one) and is_tensor(other):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return (one in (None, {}) and other in (None, {})) or bool(one == other)
