"""Does the engine compute what the fake-quantized PyTorch network computes?

    python benchmarks/parity.py
    python benchmarks/parity.py --recipe recipe.safetensors

One network call at several timesteps of a full-precision trajectory, both lowerings, both engines. "differing"
is the share of elements whose int8 level differs, in the worst quantized activation of the worst timestep and
over all of them; "output" is the relative L2 distance of the predictions, worst timestep.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from float_graph import open_float_graph
from report import add_json_option, print_report
from torch import Tensor, nn
from workload import latent_shape, observed_recipe

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising import DenoisingProcess
from accuquant.export import export_onnx
from accuquant.network import call
from accuquant.pipelines import Source, load_source
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import open_runner
from accuquant.simulate import simulate
from accuquant.verification.parity import LayerParity, layer_parity

LOWERINGS = ("rescale", "per-group")


@dataclass(frozen=True)
class StepParity:
    """One call at one timestep: every layer's levels, and the prediction of the engine [B, C, H, W]."""

    timestep: float
    layers: tuple[LayerParity, ...]
    prediction: Tensor
    error: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(FASHION_DDPM), help="a diffusers pipeline (default: bundled)")
    parser.add_argument("--recipe", type=Path, help="default: MSE scales for 10 step groups, no learning")
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--affine", choices=("shift", "zero_point"), default="shift")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--num-timesteps", type=int, default=5, help="calls (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    return parser.parse_args()


def compare_step(
    source: Source, simulated: nn.Module, recipe: Recipe, graph: Path, batch: TrajectoryBatch, step: int,
    timestep: float, engine: str, threads: int,
) -> StepParity:  # fmt: skip
    """Run one call in the engine and in the simulation."""
    sample = batch.latents[step]
    layers = layer_parity(graph, simulated, recipe, sample, timestep, engine=engine)
    with torch.no_grad():
        wanted = call(simulated, sample, torch.tensor(timestep))
    with open_runner(graph, engine, num_threads=threads) as runner:
        feeds = {"sample": sample.numpy(), "timestep": np.array([timestep], np.int64)}
        prediction = torch.from_numpy(runner.infer(feeds)[source.signature.output.name])
    return StepParity(timestep, layers, prediction, relative_error(prediction, wanted))


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Return |output - wanted| / |wanted|."""
    return float((output - wanted).norm() / wanted.norm())


def summarize(engine: str, lowering: str, steps: list[StepParity], first: list[StepParity]) -> dict[str, Any]:
    """Return the figures of one engine and lowering; `first` is the same engine's first lowering."""
    everything = [layer for step in steps for layer in step.layers]
    total = reduce(LayerParity.merge, everything)
    worst = max(everything, key=lambda layer: layer.share)
    pairs = zip(steps, first, strict=True)
    return {
        "engine": engine,
        "lowering": lowering,
        "worst_share": worst.share,
        "worst_layer": worst.name,
        "share": total.share,
        "max_difference": total.max_difference,
        "output_error": max(step.error for step in steps),
        "lowerings": max(relative_error(a.prediction, b.prediction) for a, b in pairs),
        "steps": [
            {
                "timestep": step.timestep,
                "output_error": step.error,
                "layers": [layer.to_dict() for layer in step.layers],
            }
            for step in steps
        ],
    }


def main() -> None:
    """Export both lowerings, compare every timestep in every engine, and print the worst figures."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    source = load_source(arguments.model)
    process = DenoisingProcess(source.scheduler, arguments.steps)
    if arguments.recipe:
        recipe = Recipe.load(arguments.recipe)
    else:
        recipe = observed_recipe(source, num_groups=10, affine=True)
    (batch,) = record_trajectories(
        source.network, process, latent_shape(source),
        num_trajectories=arguments.batch_size, batch_size=arguments.batch_size, seed=arguments.seed,
    )  # fmt: skip
    batch = replace(batch, latents=batch.latents.contiguous())
    chosen = sorted({round(k) for k in np.linspace(0, len(process) - 1, arguments.num_timesteps)})
    simulated = simulate(source.network, recipe)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        float_path = open_float_graph(source, Path(folder) / "float.onnx").path
        graphs = {
            lowering: export_onnx(
                float_path, recipe, Path(folder) / f"{lowering}.onnx", lowering=lowering, affine=arguments.affine
            )
            for lowering in LOWERINGS
        }
        for engine in arguments.engines:
            first: list[StepParity] = []
            for lowering, files in graphs.items():
                measured = [
                    compare_step(
                        source, simulated, recipe,
                        files[recipe.groups.find(process.timesteps[step]) if lowering == "per-group" else 0],
                        batch, step, process.timesteps[step], engine, arguments.threads,
                    )
                    for step in chosen
                ]  # fmt: skip
                first = first or measured
                results.append(summarize(engine, lowering, measured, first))
    print_report(
        f"Engine against fake-quantized PyTorch, {Path(arguments.model).name}, {len(recipe.layers)} layers, "
        f"batch {arguments.batch_size}, {len(chosen)} timesteps",
        ("engine, lowering", "differing, worst", "all", "max levels", "output", "against rescale"),
        [_row(entry) for entry in results],
        notes=[f"Timesteps: {', '.join(f'{process.timesteps[step]:g}' for step in chosen)}"],
        record={
            "settings": {k: str(v) for k, v in vars(arguments).items() if k != "json"},
            "results": results,
        },
        json_path=arguments.json,
    )


def _row(entry: dict[str, Any]) -> list[str]:
    return [
        f"{entry['engine']}, {entry['lowering']}",
        f"{entry['worst_share']:.4%} ({entry['worst_layer']})",
        f"{entry['share']:.4%}",
        str(entry["max_difference"]),
        f"{entry['output_error']:.1e}",
        f"{entry['lowerings']:.1e}",
    ]


if __name__ == "__main__":
    main()
