"""Folds before AccuQuant's own calibration: flatter activations at no cost when the network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from accuquant.channel_fold import ChannelFold
from accuquant.errors import CalibrationError, unknown_name

from .methods.calibration_set import every_step
from .methods.folding_places import head_width
from .methods.method import Run
from .methods.observed import batch_sizes
from .methods.smoothquant import places_of, smoothing_folds
from .placement import Placement

#: Narrower blocks of channels are not worth a rotation: a spike would be spread over too few.
_LEAST = 4


def smoothing(run: Run) -> tuple[ChannelFold, ...]:
    """Return SmoothQuant's factors by what the float network shows on the trajectories of `run`."""
    return smoothing_folds(run, every_step(batch_sizes(run), len(run.process)), "--equalize smoothquant")


def rotations(run: Run) -> tuple[ChannelFold, ...]:
    """Return Hadamard rotations of attention's values within each head (QuaRot, arXiv 2404.00456, section 4).

    Attention adds up values over tokens and leaves channels of a head alone, so that what `to_v` rotates
    `to_out` may rotate back: the only two linear layers of these networks with nothing between that a
    rotation would not pass. A norm with factors of its own, a gate and an activation do not let it pass.
    """
    network = run.source.network
    return tuple(
        ChannelFold(name, readers, np.ones(width, np.float32), rotated=block)
        for name, readers, width, block in _rotated(network, run.placement)
    )


def _rotated(network: nn.Module, placement: Placement) -> list[tuple[str, tuple[str, ...], int, int]]:
    found = []
    for place in places_of(network, placement, "--equalize rotate"):
        producer = network.get_submodule(place.producer)
        if not (isinstance(producer, nn.Linear) and place.producer.endswith(".to_v")):
            continue
        head = head_width(network.get_submodule(place.producer.rpartition(".")[0]), producer)
        block = head & -head  # the largest power of two that divides it
        if block >= _LEAST:
            found.append((place.producer, place.consumers, producer.out_features, block))
    if not found:
        raise CalibrationError(
            "--equalize rotate",
            got="no attention whose values and output are linear layers, with heads of 4, 8, 16 .. channels",
            expected="attention that is quantized",
            remedy="Leave it out; a convolution behind GroupNorm and SiLU has nothing that a rotation passes",
        )
    return found


#: What --equalize takes, what finds the folds, and what raises before anything runs where there are none.
EQUALIZERS: Mapping[str, Callable[[Run], tuple[ChannelFold, ...]]] = {
    "smoothquant": smoothing,
    "rotate": rotations,
}


def check_equalizer(name: str | None) -> None:
    """Raise UsageError, with the valid names, unless `name` is one of EQUALIZERS or None."""
    if name is not None and name not in EQUALIZERS:
        raise unknown_name("equalize", name, EQUALIZERS)


def check_places(name: str, network: nn.Module, placement: Placement) -> None:
    """Raise CalibrationError where `network` has nothing that folds in front of a quantized layer."""
    if name == "rotate":
        _rotated(network, placement)
    else:
        places_of(network, placement, f"--equalize {name}")
