"""What a report says beside the measurements: sizes, placement, step groups, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import accuquant
from accuquant._util.processor import describe_processor
from accuquant.manifest import Manifest
from accuquant.networks.network import count_macs
from accuquant.networks.stored_weights import count_parameters
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe
from accuquant.runtime.int8_use import Int8Use
from accuquant.verification.report.report import GroupFigure, LayerSensitivity

_PACKAGES = ("torch", "diffusers", "numpy", "onnx", "openvino", "onnxruntime")


def model_facts(reference: Source, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what a report says of the pipeline, whose images are (C, H, W)."""
    return {
        "name": Path(reference.name).name or reference.name,
        "pipeline_class": reference.pipeline_class,
        "component": reference.component,
        "parameters": count_parameters(reference.network),
        "image_shape": list(image_shape),
    }


def group_figures(recipe: Recipe) -> tuple[GroupFigure, ...]:
    """Return the bounds and the calibration outcome of each step group; empty where none is recorded."""
    edges = recipe.groups.edges
    return tuple(
        GroupFigure(start, end, result.initial_loss, result.final_loss, result.status, result.note)
        for start, end, result in zip(edges, edges[1:], recipe.results, strict=False)
    )


def layer_sensitivities(recipe: Recipe) -> tuple[LayerSensitivity, ...]:
    """Return the sensitivity that calibration measured, the most sensitive layer first."""
    measured = recipe.facts.sensitivity
    return tuple(
        LayerSensitivity(name, error, name in recipe.layers)
        for name, error in sorted(measured.items(), key=lambda item: -item[1])
    )


def placement_figures(reference: Source, recipe: Recipe) -> dict[str, Any]:
    """Return the share of multiply-accumulates that runs in int8, and the numbers of layers."""
    macs = count_macs(reference.network, reference.signature)
    int8 = sum(count for name, count in macs.items() if name in recipe.layers)
    return {
        "int8_mac_share": int8 / max(1, sum(macs.values())),
        "int8_layers": len(recipe.layers),
        "float_layers": len(macs) - len(recipe.layers),
    }


def int8_share(use: Int8Use | None) -> dict[str, float]:
    """Return the share of the calibrated layers' work that ran in int8, for the verdict."""
    return {} if use is None else {"int8_share": use.share}


def int8_figures(use: Int8Use | None) -> dict[str, Any]:
    """Return what of the calibrated layers ran in int8 and what did not; empty where the engine is silent."""
    if use is None:
        return {}
    return {
        "int8_share_run": use.share,
        "calibrated_in_float": [run.layer for run in use.in_float],
        "calibrated_not_found": list(use.unknown),
        "processor": describe_processor(),
    }


def int8_notes(use: Int8Use | None) -> tuple[str, ...]:
    """Return a note where calibrated layers ran in float."""
    text = use.describe() if use is not None else ""
    return (text,) if text else ()


def file_sizes(folder: Path, manifest: Manifest, reference: Source) -> dict[str, int]:
    """Return the bytes of the float32 weights, and of the graphs with their external data."""
    folders = {(folder / graph).parent for graph in manifest.graphs}
    data = [p for f in folders for p in f.iterdir() if p.is_file() and p.suffix != ".json"]
    return {
        "fp32_weights": 4 * count_parameters(reference.network),
        "engine_files": sum(p.stat().st_size for p in data),
    }


def bits_of(recipe: Recipe) -> str:
    """Return "W8A8", or "W4/8A8" where layers differ; "FP8" where they are no integers."""
    if recipe.format == "fp8":
        return "FP8"

    def join(bits: set[int]) -> str:
        return "/".join(map(str, sorted(bits)))

    layers = recipe.layers.values()
    return f"W{join({x.weight_bits for x in layers})}A{join({x.activation_bits for x in layers})}"


def versions() -> dict[str, str]:
    """Return the versions of AccuQuant, Python and the packages that take part."""
    found = {"accuquant": accuquant.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return one line on the machine, for the latencies."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
