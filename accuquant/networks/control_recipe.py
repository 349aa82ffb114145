"""The recipe of a UNet and its control networks: split for their graphs, joined for their simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from accuquant.channel_fold import ChannelFold
from accuquant.networks.control_signature import part_of_layer
from accuquant.networks.signature import Signature
from accuquant.recipe import Recipe


def parts_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the networks that `recipe` has layers of; ("",) where it is of one network."""
    return tuple(dict.fromkeys(part_of_layer(name)[0] for name in recipe.layers))


def part_recipe(recipe: Recipe, part: str, signature: Signature) -> Recipe:
    """Return what `recipe` says of one of its networks, under the names that its layers have there.

    `signature` is that network's. A correction of the prediction goes with the UNet.
    """
    prefix = f"{part}."
    layers = {
        name.removeprefix(prefix): replace(layer, name=name.removeprefix(prefix))
        for name, layer in recipe.layers.items()
        if name.startswith(prefix)
    }
    folds = tuple(_renamed(fold, prefix) for fold in recipe.folds if fold.producer.startswith(prefix))
    correction = recipe.correction if part == "unet" else None
    return replace(recipe, layers=layers, signature=signature, folds=folds, correction=correction)


def joined_recipe(parts: Mapping[str, Recipe], signature: Signature) -> Recipe:
    """Undo `part_recipe` for networks by their names, the UNet's first; `signature` is the pair's."""
    first = next(iter(parts.values()))
    layers = {
        f"{part}.{name}": replace(layer, name=f"{part}.{name}")
        for part, recipe in parts.items()
        for name, layer in recipe.layers.items()
    }
    folds = tuple(
        replace(
            fold,
            producer=f"{part}.{fold.producer}",
            consumers=tuple(f"{part}.{consumer}" for consumer in fold.consumers),
        )
        for part, recipe in parts.items()
        for fold in recipe.folds
    )
    return replace(first, layers=layers, signature=signature, folds=folds)


def _renamed(fold: ChannelFold, prefix: str) -> ChannelFold:
    return replace(
        fold,
        producer=fold.producer.removeprefix(prefix),
        consumers=tuple(name.removeprefix(prefix) for name in fold.consumers),
    )
