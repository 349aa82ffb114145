"""Measure what each preset of `accuquant calibrate` takes and brings on the bundled pipelines.

    python benchmarks/presets.py
    python benchmarks/presets.py --models fashion-ddpm --presets balanced best --weight-bits 4 --rounds 3

Every calibration is a process of its own, the presets take turns in each round. Images of 64 seeds (and
of other prompts) that no calibration saw are simulated in PyTorch and compared with FP32's, seed by seed.
FID2FP32 uses the bundled feature network, on gray images of 32 x 32 pixels. The last column is the mean
paired difference of PSNR against the first preset, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import add_json_option, print_report
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant._util.stage_clock import StageClock
from accuquant.bundled import FASHION_DDPM, FASHION_TEXT
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.presets import PRESETS
from accuquant.calibration.trajectory import bound
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.verification.measure.decoder import load_decoder
from accuquant.verification.measure.features import fid_to_fp32, load_features
from accuquant.verification.measure.metrics import psnr

#: Pipeline -> its folder, the steps that it is sampled with, and whether it takes prompts.
MODELS: dict[str, tuple[Path, int, bool]] = {
    "fashion-ddpm": (FASHION_DDPM, 50, False),
    "fashion-text": (FASHION_TEXT, 25, True),
}
_COLUMNS = ("", "seconds", "peak MB", "PSNR median", "mean", "worst dB", "FID2FP32", "against the first")
_BATCH = 16


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--calibration-seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=100_000, help="of the first image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--inner", nargs=3, help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def task_of(model: str, *, judged: bool) -> Task:
    """Return what `model` is asked for, to calibrate and to be judged."""
    if not MODELS[model][2]:
        return Task()
    file = FASHION_TEXT / ("other-prompts.txt" if judged else "prompts.txt")
    return Task(prompts=tuple(file.read_text(encoding="utf-8").strip().split("\n")))


def run_calibration(arguments: argparse.Namespace) -> None:
    """Calibrate as `--inner` says, and print seconds, stages and peak memory as JSON."""
    model, preset, output = arguments.inner
    folder, steps, _ = MODELS[model]
    settings = CalibrationSettings.preset(
        preset,
        steps=steps,
        weight_bits=arguments.weight_bits,
        activation_bits=arguments.activation_bits,
        seed=arguments.calibration_seed,
    )
    source, clock, begun = load_source(folder), StageClock(Silent()), time.perf_counter()
    calibrate(source, settings, output=Path(output), task=task_of(model, judged=False), progress=clock)
    clock.end()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"seconds": seconds, "stages": clock.seconds, "peak": peak}))


def calibrated(model: str, preset: str, output: Path) -> dict[str, Any]:
    """Calibrate in a process of its own."""
    words = [sys.executable, *sys.argv, "--inner", model, preset, str(output)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{model} {preset}: {facts}", file=sys.stderr, flush=True)
    return facts


@torch.no_grad()
def sample_images(source: Source, network: nn.Module, model: str, arguments: argparse.Namespace) -> Tensor:
    """Return images [N, C, H, W] in [0, 1]."""
    starter = open_starter(source, task_of(model, judged=True), steps=MODELS[model][1])
    decode, images = load_decoder(source), []
    for start in starter.starts(arguments.images, _BATCH, seed=arguments.seed):
        predict = bound(network, start.conditioning)
        images.append(decode(starter.process.sample(predict, start.latents, start.fresh_generators())))
    starter.close()
    return torch.cat(images)


def gray(images: Tensor) -> Tensor:
    """Return images as the bundled feature network takes them: [N, 1, 32, 32]."""
    return nn.functional.interpolate(images.mean(1, keepdim=True), size=32, mode="area")


def judged(images: Tensor, reference: Tensor) -> dict[str, Any]:
    """Return PSNR image by image, and FID2FP32."""
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    return {
        "psnr": psnr(images, reference).tolist(),
        "fid2fp32": fid_to_fp32(extractor, gray(images), gray(reference)),
    }


def row(name: str, runs: list[dict[str, Any]], found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Return the cells of one line of the table."""
    decibels = torch.tensor(found["psnr"])
    paired = decibels - torch.tensor(first["psnr"])
    error = float(paired.std()) / math.sqrt(len(paired))
    return [
        name,
        f"{statistics.median(run['seconds'] for run in runs):.0f}",
        f"{max(run['peak'] for run in runs):.0f}",
        f"{decibels.median():.1f}",
        f"{decibels.mean():.1f}",
        f"{decibels.min():.1f}",
        f"{found['fid2fp32']:.4f}",
        "" if found is first else f"{paired.mean():+.1f} ± {error:.1f} dB",
    ]


def main() -> None:
    """Calibrate in turns, then compare the images."""
    arguments = parse_arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.set_flush_denormal(True)
    if arguments.inner:
        run_calibration(arguments)
        return
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(model, preset) for model in arguments.models for preset in arguments.presets]
        recipes = {pair: Path(folder) / "-".join(pair) for pair in pairs}
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
        for _ in range(arguments.rounds):
            for pair in pairs:
                recipes[pair].unlink(missing_ok=True)
                runs[pair].append(calibrated(*pair, recipes[pair]))
        for model in arguments.models:
            source = load_source(MODELS[model][0])
            reference, first = sample_images(source, source.network, model, arguments), None
            for preset in arguments.presets:
                network = simulate(source.network, Recipe.load(recipes[model, preset]))
                found = judged(sample_images(source, network, model, arguments), reference)
                first = first or found
                rows.append(row(f"{model}, {preset}", runs[model, preset], found, first))
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
                results[f"{model} {preset}"] = {"runs": runs[model, preset], **found}
    print_report(
        f"W{arguments.weight_bits}A{arguments.activation_bits}, {arguments.images} images of other seeds, "
        f"{torch.get_num_threads()} threads, {arguments.rounds} rounds",
        _COLUMNS,
        rows,
        record={"results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
