"""Write a pipeline's control networks, each into a folder with manifest, recipe and configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from accuquant._util.files import sha256_of_file, write_text
from accuquant.export.export_options import ExportOptions
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.read.trace_control import trace_control
from accuquant.export.write.lowered_files import write_lowered
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.control_recipe import part_recipe, parts_of
from accuquant.networks.control_signature import unet_signature
from accuquant.networks.controlled import ControlledNetwork
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


def denoising_part(source: Source, recipe: Recipe) -> tuple[nn.Module, Recipe]:
    """Return the network whose graph the pipeline steps with, and what `recipe` says of it."""
    network = source.network
    if not isinstance(network, ControlledNetwork):
        return network, recipe
    return network.unet, part_recipe(recipe, "unet", unet_signature(network.config))


def write_controls(
    source: Source,
    recipe: Recipe,
    folder: Path,
    lowering: LoweringOptions,
    options: ExportOptions,
    common: Mapping[str, Any],
) -> tuple[str, ...]:
    """Write every control network into a folder of its own -> their names, in the pipeline's order.

    They are `controlnet`, `controlnet_1` and so on, as diffusers saves several. Nothing is written where
    `recipe` leaves all of them in float: the pipeline's own compute then. `common` are the fields of the
    manifest that all networks share.
    """
    network = source.network
    if not isinstance(network, ControlledNetwork) or set(parts_of(recipe)) <= {"unet"}:
        return ()
    names = []
    for index, (part, control) in enumerate(list(network.parts.items())[1:]):
        names.append("controlnet" if index == 0 else f"controlnet_{index}")
        inside = folder / names[-1]
        inside.mkdir()
        own = part_recipe(recipe, part, network.control_signature(control))
        graph = trace_control(control, own.signature, opset=common["opset"], dynamic=options.dynamic)
        written = write_lowered(
            graph, own, lowering, inside, "model.onnx", external_data=options.external_data
        )
        written.recipe.save(inside / RECIPE_NAME)
        _write_config(control, inside)
        manifest = Manifest(
            component=names[-1],
            graphs=written.graphs,
            signature=own.signature,
            files=digests_of(inside),
            **common,
        )
        manifest.save(inside)
    return tuple(names)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def _write_config(control: nn.Module, folder: Path) -> None:
    """Write config.json without what names files of this machine."""
    config: Any = control.config
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    plain |= {"_class_name": type(control).__name__, "_diffusers_version": config["_diffusers_version"]}
    write_text(folder / "config.json", json.dumps(plain, indent=2, sort_keys=True) + "\n")
