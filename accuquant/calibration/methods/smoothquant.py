"""Calibrate by SmoothQuant: channels with large activations are scaled down, and their weights up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from accuquant.calibration.placement import Placement
from accuquant.channel_fold import ChannelFold
from accuquant.errors import CalibrationError
from accuquant.networks.fold import fold_network
from accuquant.networks.network import float_weight, watching_inputs

from .calibration_set import Pick, every_step, run_all
from .folding_places import Place, folding_places
from .method import Found, Method, Run
from .observed import batch_sizes, observe
from .ranges import ranged

#: How much of the difficulty moves into the weights: SmoothQuant's alpha.
ALPHA = 0.5
#: Factors stay within this of 1, and its inverse: a channel that is nearly dead is left nearly as it is.
MOST = 1e3


def find(run: Run) -> Found:
    """Return min-max scales of the folded network, and the folds."""
    picks = every_step(batch_sizes(run), len(run.process))
    folds = smoothing_folds(run, picks)
    folded = replace(run, source=replace(run.source, network=fold_network(run.source.network, folds)))
    layers = ranged(folded, observe(folded, picks), "minmax")
    return Found(layers, {"calls": len(picks), "folds": len(folds)}, folds=folds)


def smoothing_folds(
    run: Run, picks: Sequence[Pick], asked: str = "--method smoothquant"
) -> tuple[ChannelFold, ...]:
    """Return the folds of all places whose readers are quantized, by what the float network shows there."""
    places = places_of(run.source.network, run.placement, asked)
    modules = dict(run.source.network.named_modules())
    peaks = _channel_peaks(run, places, picks)
    return tuple(
        ChannelFold(
            place.producer,
            place.consumers,
            factors(peaks[place.consumers[0]], [float_weight(modules[name]) for name in place.consumers]),
        )
        for place in places
    )


def places_of(network: nn.Module, placement: Placement, asked: str = "--method smoothquant") -> list[Place]:
    """Return where factors fold in front of quantized layers.

    Raises CalibrationError about what was `asked` for where nowhere.
    """
    quantized = set(placement.quantized)
    places = [place for place in folding_places(network) if quantized & set(place.consumers)]
    if not places:
        raise CalibrationError(
            asked,
            got="no normalization or linear layer in front of a quantized layer that factors fold into",
            expected="attention or feed-forward layers that are quantized",
            remedy="Leave it out; a convolution behind GroupNorm and SiLU has nowhere to fold to",
        )
    return places


def factors(
    peaks: npt.NDArray[np.float32], weights: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) [C] for weights [O, C] (equation 4).

    A channel without activations or without weights keeps its scale.
    """
    largest = np.max([np.abs(weight).max(0) for weight in weights], axis=0)
    live = (peaks > 0) & (largest > 0)
    safe_peaks, safe_weights = np.where(live, peaks, 1), np.where(live, largest, 1)
    found = safe_peaks.astype(np.float64) ** ALPHA / safe_weights.astype(np.float64) ** (1 - ALPHA)
    return np.where(live, np.clip(found, 1 / MOST, MOST), 1).astype(np.float32)


def _channel_peaks(
    run: Run, places: Sequence[Place], picks: Sequence[Pick]
) -> Mapping[str, npt.NDArray[np.float32]]:
    """Return the largest |input| of each channel of each place's first reader."""
    network = run.source.network
    peaks: dict[str, torch.Tensor] = {}
    modules = dict(network.named_modules())

    def see(name: str, x: torch.Tensor) -> None:
        now = x.detach().abs().flatten(0, -2).amax(0).cpu()
        peaks[name] = torch.maximum(peaks[name], now) if name in peaks else now

    readers = {place.consumers[0]: modules[place.consumers[0]] for place in places}
    run.shown.stage("peaks of channels", len(picks))
    with watching_inputs(readers, see):
        run_all(network, run.process, run.batches, picks, run.shown.advance)
    return {name: values.numpy() for name, values in peaks.items()}


METHOD = Method(
    name="smoothquant",
    meaning="factors of channels folded into norms and weights, then min-max; attention and feed-forward",
    source="Xiao et al., arXiv 2211.10438, section 4 and equation 4, alpha 0.5",
    matched="per-channel factors from calibrated peaks, folded into what is in front, static per-tensor "
    "min-max ranges, INT8 weights and activations",
    not_matched="per-tensor scales of weights: all methods here have one for each output channel. Places "
    "where factors would have to be multiplied while the network runs, adaptive norms among them,"
    " are left alone",
    find=find,
    check=places_of,
    weight_bits=(8, 8),
    activation_bits=(8, 8),
)
