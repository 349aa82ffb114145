"""From what layers saw to qparams: one scale for all steps, weights to the nearest level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accuquant.calibration.activations import layer_qparams
from accuquant.networks.network import quantizable_layers
from accuquant.qparams import LayerQParams

from .method import Run
from .observed import Observed


def ranged(run: Run, observed: Mapping[str, Observed], observer: str) -> dict[str, LayerQParams]:
    """Return qparams with the scale that `observer` finds for each layer, the same in every step group."""
    return ranged_by_group(run, [observed] * len(run.groups), observer)


def ranged_by_group(
    run: Run, observed: Sequence[Mapping[str, Observed]], observer: str
) -> dict[str, LayerQParams]:
    """Return qparams with the scale that `observer` finds in each step group, given what was seen there.

    Zero-points and the scales of weights are those that AccuQuant's own calibration starts from.
    """
    layers, settings = quantizable_layers(run.source.network), run.settings
    alike = all(group is observed[0] for group in observed)
    run.shown.stage("scales", len(run.placement.quantized))
    found = {}
    for name in run.placement.quantized:
        samples = [group[name].with_extremes for group in (observed[:1] if alike else observed)]
        one = layer_qparams(
            name, layers[name], samples,
            weight_bits=settings.weight_bits, activation_bits=settings.activation_bits,
            observer=observer, affine=settings.affine,
            format=settings.format,
        )  # fmt: skip
        found[name] = one.with_activation_scale(one.activation_scale.repeat(len(observed))) if alike else one
        run.shown.advance()
    return found
