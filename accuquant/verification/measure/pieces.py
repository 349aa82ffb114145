"""The networks of an exported folder, one by one: a UNet and its control networks have a graph each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.control_recipe import joined_recipe
from accuquant.networks.control_signature import IMAGE, SCALE, image_names
from accuquant.networks.controlled import ControlledNetwork, call_control, with_residuals
from accuquant.networks.device import device_of
from accuquant.networks.network import ConditioningTensors, call
from accuquant.recipe import Recipe


@dataclass(frozen=True)
class Called:
    """A network of a simulation, what it is called with in one step, and how."""

    network: nn.Module
    sample: Tensor
    conditioning: ConditioningTensors
    invoke: Callable[[nn.Module, Tensor, Tensor, ConditioningTensors], object] = call


@dataclass(frozen=True)
class Piece:
    """One exported network: its folder, its recipe, and its name among the parts, "" where it is alone."""

    folder: Path
    manifest: Manifest
    recipe: Recipe
    name: str = ""

    def graph(self, timestep: float) -> Path:
        """Return the graph of a timestep."""
        graphs = self.manifest.graph_paths(self.folder)
        return graphs[self.recipe.groups.find(timestep) if len(graphs) > 1 else 0]

    def whole_name(self, layer: str) -> str:
        """Return the name of a layer in the recipe of all networks."""
        return f"{self.name}.{layer}" if self.name else layer

    def called(
        self, simulated: nn.Module, sample: Tensor, timestep: float, conditioning: ConditioningTensors
    ) -> Called:
        """Return this network in `simulated`, and what a call of that with `conditioning` calls it with."""
        if not isinstance(simulated, ControlledNetwork):
            return Called(simulated, sample, conditioning)
        names = image_names(len(simulated.controls))
        network = simulated.parts[self.name]
        if self.name == "unet":
            device = device_of(simulated)
            given = {name: tensor.to(device) for name, tensor in conditioning.items()}
            with torch.no_grad():
                shared, residuals = with_residuals(
                    simulated, sample.to(device), torch.tensor(timestep), given
                )
            return Called(network, sample, shared | residuals)
        index = list(simulated.parts).index(self.name) - 1
        shared = {k: v for k, v in conditioning.items() if not k.startswith((IMAGE, SCALE))}
        own = {IMAGE: conditioning[names[index]], SCALE: conditioning[SCALE][index : index + 1]}
        channels = self.manifest.signature.sample.shape[1]
        assert isinstance(channels, int)
        return Called(network, sample[:, :channels], shared | own, call_control)


def whole_recipe(folder: Path, manifest: Manifest, unet: Recipe, network: ControlledNetwork) -> Recipe:
    """Return the recipe of a UNet and of the control networks that `folder` holds."""
    places = manifest.control_folders(folder)
    names = list(network.parts)[1 : 1 + len(places)]
    controls = [Recipe.load(place / RECIPE_NAME) for place in places]
    return joined_recipe({"unet": unet, **dict(zip(names, controls, strict=True))}, network.signature)


def pieces_of(folder: Path, manifest: Manifest, recipe: Recipe, network: nn.Module) -> tuple[Piece, ...]:
    """Return the exported networks of `folder`; `recipe` is that of a network that is alone."""
    if not isinstance(network, ControlledNetwork):
        return (Piece(folder, manifest, recipe),)
    places = manifest.control_folders(folder)
    named = zip(list(network.parts), (folder, *places), strict=False)
    return tuple(
        Piece(place, Manifest.load(place), Recipe.load(place / RECIPE_NAME), name) for name, place in named
    )
