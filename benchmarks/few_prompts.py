"""Compare GPTQ and rounding to nearest on prompts that were not calibrated with, for few calibration prompts.

    python benchmarks/few_prompts.py

The bundled text-guided pipeline is calibrated with 1, 4 and 16 of its prompts, without learning, once
with each `--rounding`; images of its other prompts are simulated in PyTorch and compared with FP32's, seed by
seed. "won" is the share of images that GPTQ is closer for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import add_json_option, print_report
from torch import Tensor, nn

from accuquant.bundled import FASHION_TEXT
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.trajectory import bound
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.verification.measure.decoder import load_decoder
from accuquant.verification.measure.metrics import psnr

_BATCH = 4


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", nargs="+", type=int, default=[1, 4, 16], metavar="N")
    parser.add_argument("--weight-bits", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--seed", type=int, default=10_000, help="of the first image (default: %(default)s)")
    add_json_option(parser)
    return parser.parse_args()


def read_prompts(name: str, count: int | None = None) -> tuple[str, ...]:
    """Return the first `count` lines of one of the pipeline's files of prompts."""
    return tuple((FASHION_TEXT / name).read_text(encoding="utf-8").split("\n")[:count])


@torch.no_grad()
def sample_images(source: Source, network: nn.Module, arguments: argparse.Namespace) -> Tensor:
    """Return images [N, C, H, W] of the other prompts."""
    starter = open_starter(source, Task(prompts=read_prompts("other-prompts.txt", 48)), steps=arguments.steps)
    decode, ends = load_decoder(source), []
    for start in starter.starts(arguments.images, 16, seed=arguments.seed):
        predict = bound(network, start.conditioning)
        latents = starter.process.sample(predict, start.latents, start.fresh_generators())
        ends.append(decode(latents))
    starter.close()
    return torch.cat(ends)


def calibrated(source: Source, arguments: argparse.Namespace, **choices: Any) -> nn.Module:
    """Return the network as a calibration without learning quantizes it."""
    prompts = read_prompts("prompts.txt", choices.pop("prompts"))
    settings = CalibrationSettings(
        steps=arguments.steps, num_trajectories=arguments.trajectories, batch_size=_BATCH,
        iterations=0, shared_iterations=0, **choices,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        recipe = calibrate(source, settings, output=Path(folder) / "recipe", task=Task(prompts=prompts))
    return simulate(source.network, recipe)


def main() -> None:
    """Calibrate with each number of prompts and each rounding, and compare the images."""
    arguments = parse_arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    source = load_source(FASHION_TEXT)
    reference = sample_images(source, source.network, arguments)
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for bits in arguments.weight_bits:
        for prompts in arguments.prompts:
            found = {}
            for rounding in ("nearest", "gptq"):
                network = calibrated(source, arguments, prompts=prompts, rounding=rounding, weight_bits=bits)
                found[rounding] = psnr(sample_images(source, network, arguments), reference)
            paired = found["gptq"] - found["nearest"]
            rows.append([
                f"W{bits}A8, {prompts} prompts", f"{found['nearest'].median():.1f}",
                f"{found['gptq'].median():.1f}", f"{paired.median():+.2f}",
                f"{(paired > 0).double().mean():.0%}",
            ])  # fmt: skip
            print(*rows[-1], sep=" | ", file=sys.stderr)
            results.append(
                {"bits": bits, "prompts": prompts, **{name: p.tolist() for name, p in found.items()}}
            )
    print_report(
        f"{arguments.images} images of other prompts, {arguments.steps} steps, "
        f"{arguments.trajectories} trajectories, median PSNR against FP32",
        ("", "nearest dB", "gptq dB", "paired difference dB", "won"),
        rows,
        record={"results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
