"""Compare one network call in an engine with the fake-quantized PyTorch network.

    python benchmarks/parity.py
    python benchmarks/parity.py --recipe recipe.safetensors

One network call at several timesteps of a full-precision trajectory, both lowerings, both engines.
The simulation gets the engine's own int8 levels at the input of every layer, so that each difference arose
between two quantized layers: "differing" is the share of levels that differ, in the worst layer and timestep
and over all of them. Outputs are relative L2 distances at the worst timestep, both networks on their own: a
value that float rounding moves across the border of a level then changes what follows, so they are to be read
beside the last column, what quantization itself does to the output.
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
from float_graph import open_float_graph
from report import add_json_option, machine, print_report
from torch import Tensor, nn
from workload import latent_shape, observed_recipe

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.export.export_options import Lowering
from accuquant.export.write.onnx_file import write_onnx
from accuquant.networks.network import call
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import load_source
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import open_runner
from accuquant.verification.measure.parity import LayerParity, layer_parity

_NO_VNNI = (
    "No VNNI: OpenVINO's int8 convolutions saturate with 8-bit weights, and reading levels out of a graph "
    "makes it choose kernels that halve the weights. Judge OpenVINO on a processor with VNNI; here, only by "
    "'output' with --weight-bits 7."
)
LOWERINGS: tuple[Lowering, ...] = ("rescale", "per-group")


@dataclass(frozen=True)
class Step:
    """One call that is compared: sample [B, C, H, W] and the timestep of the batch."""

    sample: Tensor
    timestep: float


@dataclass(frozen=True)
class StepParity:
    """One call compared: levels layer by layer, the engine's prediction [B, C, H, W], relative errors."""

    timestep: float
    layers: tuple[LayerParity, ...]
    prediction: Tensor
    error: float
    quantization_error: float


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(FASHION_DDPM), help="a diffusers pipeline (default: bundled)")
    parser.add_argument("--recipe", type=Path, help="default: MSE scales for 10 step groups, no learning")
    parser.add_argument("--weight-bits", type=int, default=8, help="of the default recipe")
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


def compare_step(
    graph: Path, networks: tuple[nn.Module, nn.Module], recipe: Recipe, step: Step, engine: str, threads: int
) -> StepParity:
    """Run one call in the engine, and in the (float, simulated) `networks`."""
    layers = layer_parity(graph, networks[1], recipe, step.sample, step.timestep, engine=engine)
    with torch.no_grad():
        exact, simulated = (call(net, step.sample, torch.tensor(step.timestep)) for net in networks)
    feeds = {"sample": step.sample.numpy(), "timestep": np.array([step.timestep], np.float32)}
    with open_runner(graph, engine, num_threads=threads) as runner:
        prediction = torch.from_numpy(runner.infer(feeds)[recipe.signature.output.name])
    return StepParity(
        step.timestep,
        layers,
        prediction,
        relative_error(prediction, simulated),
        relative_error(simulated, exact),
    )


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Return |output - wanted| / |wanted|."""
    return float((output - wanted).norm() / wanted.norm())


def summarize(steps: Sequence[StepParity], first: Sequence[StepParity]) -> dict[str, Any]:
    """Return the figures of one engine and lowering; `first` is the same engine's first lowering."""
    layers = [layer for step in steps for layer in step.layers]
    worst = max(layers, key=lambda layer: layer.share)
    return {
        "worst_share": worst.share,
        "worst_layer": worst.name,
        "share": reduce(LayerParity.merge, layers).share,
        "max_difference": max(layer.max_difference for layer in layers),
        "error": max(step.error for step in steps),
        "quantization_error": max(step.quantization_error for step in steps),
        "against_rescale": max(
            relative_error(a.prediction, b.prediction) for a, b in zip(steps, first, strict=True)
        ),
        "steps": [{"timestep": s.timestep, "layers": [layer.to_dict() for layer in s.layers]} for s in steps],
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
    networks = (source.network, simulate(source.network, recipe))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = open_float_graph(source, folder / "float.onnx").path
        graphs = {
            lowering: write_onnx(
                path, recipe, folder / f"{lowering}.onnx", lowering=lowering, affine=arguments.affine
            )
            for lowering in LOWERINGS
        }
        for engine in arguments.engines:
            first: list[StepParity] = []
            for lowering, files in graphs.items():
                onnx_files = [file for file in files if file.suffix == ".onnx"]
                measured = [
                    compare_step(
                        onnx_files[recipe.groups.find(step.timestep) if len(onnx_files) > 1 else 0],
                        networks, recipe, step, engine, arguments.threads,
                    )
                    for step in steps
                ]  # fmt: skip
                first = first or measured
                results[f"{engine}, {lowering}"] = summarize(measured, first)
    print_report(
        f"Engine against fake-quantized PyTorch, {Path(arguments.model).name}, {len(recipe.layers)} layers, "
        f"batch {arguments.batch_size}, {len(steps)} timesteps",
        ("", "differing", "all layers", "max levels", "output", "against rescale", "quantization"),
        [_row(name, entry) for name, entry in results.items()],
        notes=[
            f"Timesteps: {', '.join(f'{step.timestep:g}' for step in steps)}",
            *([_NO_VNNI] if machine().endswith("no VNNI") and "openvino" in arguments.engines else []),
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
        f"{entry['share']:.3%}",
        str(entry["max_difference"]),
        *(f"{entry[key]:.1e}" for key in ("error", "against_rescale", "quantization_error")),
    ]


if __name__ == "__main__":
    main()
