"""The states of a sampler as named tensors, and back, so that a calibration resumes bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accuquant.denoising.process import ProcessState

_TENSOR = "tensor"


def states_to_tensors(states: Sequence[ProcessState]) -> tuple[dict[str, Tensor], str]:
    """Return tensors by name, and a JSON text that says where in the schedulers' history they stand.

    Random states that never change (a sampler without noise) are stored once, and so is a tensor that
    several states share, as the outputs that a multistep solver remembers.
    """
    random = torch.stack([torch.stack(state.generators) for state in states])
    constant = bool((random == random[:1]).all())
    tensors = {"random": (random[:1] if constant else random).contiguous()}
    names: dict[int, str] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, list):
            return [encode(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in names:
            names[id(value)] = f"history.{len(names)}"
            tensors[names[id(value)]] = value.detach().contiguous().clone()
        return {_TENSOR: names[id(value)]}

    histories = [{key: encode(value) for key, value in state.scheduler.items()} for state in states]
    return tensors, json.dumps(histories)


def states_from_tensors(tensors: Mapping[str, Tensor], text: str) -> tuple[ProcessState, ...]:
    """Read what `states_to_tensors` returned."""
    histories = json.loads(text)
    random = tensors["random"].expand(len(histories), -1, -1)
    return tuple(
        state_from_tensors(row, history, tensors.__getitem__)
        for row, history in zip(random, histories, strict=True)
    )


def state_from_tensors(
    random: Tensor, history: Mapping[str, Any], read: Callable[[str], Tensor]
) -> ProcessState:
    """Return one state from its row of "random", its element of the JSON text, and the tensors by name."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        return read(value[_TENSOR]) if isinstance(value, dict) else value

    return ProcessState(tuple(random), {key: decode(value) for key, value in history.items()})
