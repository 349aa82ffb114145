"""Measure what the numpy denoising loop adds to the time of the network itself.

    python benchmarks/loop_overhead.py

The network is a DDPM-CIFAR-sized UNet (35.7 M parameters, random weights, float) in OpenVINO. Both
times come from the same runs: the loop's wall time, and within it the time inside the engine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import diffusers
import onnx_ir as ir
import torch
from report import add_json_option, print_report

from accuquant.export.read.trace import trace
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.network import signature_of
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.runner import Array
from accuquant.runtime.sample import sample_latents
from accuquant.runtime.samplers import Schedule
from accuquant.runtime.scheduler_config import SUPPORTED_SCHEDULERS, SchedulerConfig


class TimedRunner(OpenVinoRunner):
    """An OpenVINO runner that adds up the time inside the engine."""

    seconds = 0.0

    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Time the engine alone, without this package's checks."""
        start = time.perf_counter()
        result = super().infer_impl(feeds)
        self.seconds += time.perf_counter() - start
        return result


def cifar_unet() -> diffusers.UNet2DModel:
    """Build the UNet of DDPM on CIFAR-10 with random weights."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def manifest_of(network: diffusers.UNet2DModel) -> Manifest:
    """Describe the float graph as the export stage would."""
    return Manifest(
        pipeline_class="DDPMPipeline",
        component="unet",
        lowering="rescale",
        precision="fp32",
        opset=21,
        graphs=("model.onnx",),
        groups=StepGroups((1000.0, 0.0)),
        signature=signature_of(network),
        model_hash="",
        num_inference_steps=50,
        accuquant_version="0",
    )


def measure(
    model: EngineModel, runner: TimedRunner, sampler: str, steps: int, batch: int
) -> tuple[float, float]:
    """Return (engine, loop) milliseconds a step of one run."""
    schedule = Schedule.create(SchedulerConfig(sampler), steps)
    runner.seconds, start = 0.0, time.perf_counter()
    sample_latents(model, schedule, range(batch))
    loop = time.perf_counter() - start
    return 1e3 * runner.seconds / steps, 1e3 * loop / steps


def main() -> None:
    """Print one line a sampler: medians over interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, help="threads of the engine; all cores by default")
    add_json_option(parser)
    arguments = parser.parse_args()
    network = cifar_unet()
    runs: dict[str, list[tuple[float, float]]] = {sampler: [] for sampler in SUPPORTED_SCHEDULERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(trace(network, signature_of(network)), path)
        runner = TimedRunner(path, num_threads=arguments.num_threads)
        with EngineModel(manifest_of(network), (runner,)) as model:
            measure(model, runner, SUPPORTED_SCHEDULERS[0], 2, arguments.batch_size)  # compile, warm up
            for _ in range(arguments.rounds):
                for sampler, times in runs.items():
                    times.append(measure(model, runner, sampler, arguments.steps, arguments.batch_size))
    rows = [
        (
            sampler,
            f"{statistics.median(engine for engine, _ in times):.2f}",
            f"{statistics.median(loop for _, loop in times):.2f}",
            f"{statistics.median(loop / engine for engine, loop in times):.4f}",
        )
        for sampler, times in runs.items()
    ]
    parameters = sum(p.numel() for p in network.parameters())
    print_report(
        f"Denoising loop in numpy, UNet of {parameters / 1e6:.1f} M parameters, batch {arguments.batch_size}",
        ("sampler", "UNet, ms a step", "loop, ms a step", "loop / UNet"),
        rows,
        notes=(f"Medians of {arguments.rounds} interleaved runs of {arguments.steps} steps.",),
        record={"milliseconds": runs},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
