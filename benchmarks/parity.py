"""Does the engine compute what the fake-quantized PyTorch network computes?

    python benchmarks/parity.py
    python benchmarks/parity.py --recipe recipe.safetensors

One network call at several timesteps of a full-precision trajectory, both lowerings, both engines.
"layer by layer" gives the simulation the engine's own int8 levels at the input of every layer, so that each
difference arose between two quantized layers. "whole call" lets both run on their own: a value that float
rounding moves across the border of a level then changes what follows. Shares are of elements whose level
differs, outputs are relative L2 distances; both are those of the worst timestep.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_levels import TappedGraph, compare_levels, forced_levels
from float_graph import open_float_graph
from report import add_json_option, print_report
from torch import Tensor, nn
from workload import latent_shape, observed_recipe

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising import DenoisingProcess
from accuquant.export import export_onnx
from accuquant.export.lowering import Lowering
from accuquant.network import call
from accuquant.pipelines import load_source
from accuquant.recipe import Recipe
from accuquant.simulate import simulate
from accuquant.verification.parity import LayerParity, simulated_levels

LOWERINGS: tuple[Lowering, ...] = ("rescale", "per-group")


@dataclass(frozen=True)
class Step:
    """One call that is compared: sample [B, C, H, W] and the timestep of the batch."""

    sample: Tensor
    timestep: float


@dataclass(frozen=True)
class StepParity:
    """One call compared: levels layer by layer and in the whole call, the engine's prediction, its errors."""

    timestep: float
    forced: tuple[LayerParity, ...]
    free: tuple[LayerParity, ...]
    prediction: Tensor
    forced_error: float
    free_error: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(FASHION_DDPM), help="a diffusers pipeline (default: bundled)")
    parser.add_argument("--recipe", type=Path, help="default: MSE scales for 10 step groups, no learning")
    parser.add_argument("--weight-bits", type=int, default=8, help="of the default recipe (default: %(default)s)")
    parser.add_argument("--symmetric", action="store_true", help="no zero-points in the default recipe")
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--affine", choices=("shift", "zero_point"), default="shift")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--num-timesteps", type=int, default=5, help="calls (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    return parser.parse_args()


def compare(
    graphs: Sequence[Path], simulated: nn.Module, recipe: Recipe, steps: Sequence[Step], engine: str, threads: int
) -> list[StepParity]:
    """Run every step in the engine and in the simulation; `graphs` is one, or one a step group."""
    tapped: dict[Path, TappedGraph] = {}
    measured = []
    for step in steps:
        path = graphs[recipe.groups.find(step.timestep) if len(graphs) > 1 else 0]
        if path not in tapped:
            tapped[path] = TappedGraph(path, recipe, engine, threads)
        measured.append(_compare_step(tapped[path], simulated, recipe, step))
    for graph in tapped.values():
        graph.close()
    return measured


def _compare_step(graph: TappedGraph, simulated: nn.Module, recipe: Recipe, step: Step) -> StepParity:
    found = graph(step.sample, step.timestep)
    forced = forced_levels(simulated, recipe, found.levels, step.sample, step.timestep)
    free = simulated_levels(simulated, recipe, step.sample, step.timestep)
    with torch.no_grad():
        wanted = call(simulated, step.sample, torch.tensor(step.timestep))
    return StepParity(
        step.timestep,
        compare_levels(found.levels, forced.levels),
        compare_levels(found.levels, free),
        found.prediction,
        relative_error(found.prediction, forced.prediction),
        relative_error(found.prediction, wanted),
    )


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Return |output - wanted| / |wanted|."""
    return float((output - wanted).norm() / wanted.norm())


def summarize(steps: Sequence[StepParity], first: Sequence[StepParity]) -> dict[str, Any]:
    """Return the figures of one engine and lowering; `first` is the same engine's first lowering."""
    worst = max((layer for step in steps for layer in step.forced), key=lambda layer: layer.share)
    return {
        "worst_share": worst.share,
        "worst_layer": worst.name,
        "max_difference": max(layer.max_difference for step in steps for layer in step.forced),
        "forced_error": max(step.forced_error for step in steps),
        "free_share": max(reduce(LayerParity.merge, step.free).share for step in steps),
        "free_error": max(step.free_error for step in steps),
        "against_rescale": max(
            relative_error(a.prediction, b.prediction) for a, b in zip(steps, first, strict=True)
        ),
        "steps": [
            {
                "timestep": step.timestep,
                "layer_by_layer": [layer.to_dict() for layer in step.forced],
                "whole_call": [layer.to_dict() for layer in step.free],
            }
            for step in steps
        ],
    }


def trajectory_steps(arguments: argparse.Namespace, source: Any) -> list[Step]:
    """Return evenly spaced calls of one full-precision trajectory batch."""
    process = DenoisingProcess(source.scheduler, arguments.steps)
    (batch,) = record_trajectories(
        source.network,
        process,
        latent_shape(source),
        num_trajectories=arguments.batch_size,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    chosen = sorted({round(k) for k in np.linspace(0, len(process) - 1, arguments.num_timesteps)})
    return [Step(batch.latents[k].contiguous(), process.timesteps[k]) for k in chosen]


def main() -> None:
    """Export both lowerings, compare every timestep in every engine, and print the worst figures."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    source = load_source(arguments.model)
    if arguments.recipe:
        recipe = Recipe.load(arguments.recipe)
    else:
        recipe = observed_recipe(
            source, num_groups=10, affine=not arguments.symmetric, weight_bits=arguments.weight_bits
        )
    steps = trajectory_steps(arguments, source)
    simulated = simulate(source.network, recipe)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = open_float_graph(source, folder / "float.onnx").path
        graphs = {
            lowering: export_onnx(
                path, recipe, folder / f"{lowering}.onnx", lowering=lowering, affine=arguments.affine
            )
            for lowering in LOWERINGS
        }
        for engine in arguments.engines:
            first: list[StepParity] = []
            for lowering, files in graphs.items():
                onnx_files = [file for file in files if file.suffix == ".onnx"]
                measured = compare(onnx_files, simulated, recipe, steps, engine, arguments.threads)
                first = first or measured
                results[f"{engine}, {lowering}"] = summarize(measured, first)
    print_report(
        f"Engine against fake-quantized PyTorch, {Path(arguments.model).name}, {len(recipe.layers)} layers, "
        f"batch {arguments.batch_size}, {len(steps)} timesteps",
        ("", "layer by layer: worst", "max levels", "output", "whole call: all", "output", "against rescale"),
        [_row(name, entry) for name, entry in results.items()],
        notes=[
            f"Timesteps: {', '.join(f'{step.timestep:g}' for step in steps)}",
            *(f"{name}: worst in {entry['worst_layer']}" for name, entry in results.items()),
        ],
        record={
            "settings": {key: str(value) for key, value in vars(arguments).items() if key != "json"},
            "results": results,
        },
        json_path=arguments.json,
    )


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{entry['worst_share']:.3%}",
        str(entry["max_difference"]),
        f"{entry['forced_error']:.1e}",
        f"{entry['free_share']:.3%}",
        f"{entry['free_error']:.1e}",
        f"{entry['against_rescale']:.1e}",
    ]


if __name__ == "__main__":
    main()
