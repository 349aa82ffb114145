"""How much int8 noise a recipe has more than another, from their scales alone."""

from __future__ import annotations

import numpy as np

from accuquant.recipe import Recipe


def added_noise_db(recipe: Recipe, shared: Recipe) -> float:
    """Return by how many decibels the noise of activations grows where `shared` replaces `recipe`.

    Rounding to a grid of step s adds noise of power s^2 / 12. Layers and step groups count alike, as if each
    layer's noise were as large a part of its signal. 0 where no scale differs, and for FP8: its rounding is a
    share of each value, whatever the scale.
    """
    if recipe.format == "fp8":
        return 0.0
    ratios = [
        (shared.layers[name].activation_scale / layer.activation_scale).astype(np.float64) ** 2
        for name, layer in recipe.layers.items()
    ]
    return float(10 * np.log10(np.mean([ratio.mean() for ratio in ratios]))) if ratios else 0.0
