"""Measure what a layer's output errs by on inputs that it was not rounded by, for several ways to round.

    python benchmarks/rounding_study.py --model fashion-ddpm --weight-bits 4
    python benchmarks/rounding_study.py --model fashion-text --prompts 1

Rows of every layer's input are gathered on full-precision trajectories, and on others of other seeds and
prompts to judge by. Each way rounds each layer's weight; its output error, activations rounded too and the
mean error taken into the bias, is relative to rounding to nearest: the geometric mean over the layers, and
the worst.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from report import add_json_option, print_report
from torch import Tensor, nn

from accuquant.bundled import FASHION_DDPM, FASHION_TEXT
from accuquant.calibration.factor import Factor
from accuquant.calibration.placement import place
from accuquant.calibration.rounding import gptq, shrinkage
from accuquant.calibration.trajectory import record_from
from accuquant.calibration.unfolding import as_matrices, input_width, random_rows
from accuquant.networks.network import count_macs, quantizable_layers, weight_of
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.qparams import level_bounds
from accuquant.scales.observer import norm_scale, weight_scale

_ROWS, _STEPS, _TRAJECTORIES, _BATCH = 8192, 10, 16, 8
_MODELS = {"fashion-ddpm": FASHION_DDPM, "fashion-text": FASHION_TEXT}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=_MODELS, default="fashion-ddpm")
    parser.add_argument("--prompts", type=int, default=16, help="prompts to calibrate with")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--widest", type=int, default=1200, help="skip layers with more inputs")
    parser.add_argument("--every", type=int, default=3, help="take every so many-th layer of the others")
    add_json_option(parser)
    return parser.parse_args()


@torch.no_grad()
def gather(source: Source, layers: dict[str, nn.Module], task: Task, seed: int) -> dict[str, Tensor]:
    """Return rows [n, d] of each layer's input on trajectories from `seed` on."""
    starter = open_starter(source, task, steps=_STEPS)
    starts = list(starter.starts(_TRAJECTORIES, _BATCH, seed=seed))
    starter.close()
    count, rng = _ROWS // (len(starts) * _STEPS), torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda m, args, kept=rows[name]: kept.append(random_rows(m, args[0], count, rng))
        )
        for name, layer in layers.items()
    ]
    record_from(source.network, starter.process, starts)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(some).double() for name, some in rows.items()}


class Trial:
    """One layer's weight, the rows it is rounded by and those it is judged by."""

    def __init__(self, weight: Tensor, rows: Tensor, judged: Tensor, bits: tuple[int, int]) -> None:
        self.weight, self.bits = weight, bits[0]
        scale = norm_scale(rows.numpy().astype(np.float32).ravel(), bits[1])
        low, high = level_bounds(bits[1])
        self.noise = scale**2 / 12
        self.rounded_inputs = (judged / scale).round().clamp(low, high) * scale
        self.outputs = judged @ weight.T
        self.rows = rows
        self.scale = self.scales(weight)

    def scales(self, weight: Tensor) -> Tensor:
        """Return the searched scale of each output."""
        return torch.from_numpy(weight_scale(weight.numpy(), self.bits, 0)).double()

    def error(self, levels: Tensor, scale: Tensor, mean: Tensor) -> float:
        """Return the mean squared error of the outputs, the mean taken into the bias."""
        weight = levels.double() * scale[:, None]
        shift = mean @ (self.weight - weight).T
        return float((self.rounded_inputs @ weight.T + shift - self.outputs).square().mean())

    def nearest(self) -> float:
        """Return the error of rounding to nearest, with the bias correction."""
        levels = (self.weight / self.scale[:, None]).round().clamp(*level_bounds(self.bits))
        return self.error(levels, self.scale, self.rows.mean(0))

    def gptq(self, share: float = 0, *, rows: float = 0, blocks: int = 1, filtered: bool = False) -> float:
        """Return the error of GPTQ; the covariance is shrunk by `share` (0: as a calibration does).

        `rows` of inputs for each column (0: all); `blocks` along the inputs; `filtered` turns down first what
        carries more rounding noise than signal: W C (C + s^2 / 12 I)^-1.
        """
        width = self.weight.shape[1]
        some = self.rows[torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0))]
        some = some[: int(rows * width) or None]
        covariance = torch.cov(some.T, correction=0)
        share = share or shrinkage(width, len(torch.unique(some, dim=0)))
        covariance.diagonal().add_(share * covariance.diagonal().mean() + self.noise)
        target, scale = self.weight, self.scale
        if filtered:
            target = target - self.noise * Factor.of_(covariance.clone()).solve(target.T.contiguous()).T
            scale = self.scales(target)
        levels = torch.empty(target.shape)
        for columns in np.array_split(np.arange(width), blocks):
            block = slice(int(columns[0]), int(columns[-1]) + 1)
            factor = Factor.of_(covariance[block, block].clone())
            levels[:, block] = gptq(target[:, block], scale, factor, self.bits).float()
        return self.error(levels, scale, some.mean(0))


WAYS: dict[str, Callable[[Trial], float]] = {
    "sample covariance and filter (before)": lambda trial: trial.gptq(1e-9, filtered=True),
    "shrinkage 0.05 and filter": lambda trial: trial.gptq(0.05, filtered=True),
    "shrinkage 0.01": lambda trial: trial.gptq(0.01),
    "shrinkage 0.05": lambda trial: trial.gptq(0.05),
    "shrinkage 0.2": lambda trial: trial.gptq(0.2),
    "shrinkage 1": lambda trial: trial.gptq(1.0),
    "chosen: 0.05, more for few distinct rows": lambda trial: trial.gptq(),
    "chosen, 2 blocks of columns": lambda trial: trial.gptq(blocks=2),
    "chosen, 4 blocks of columns": lambda trial: trial.gptq(blocks=4),
    "chosen, 2 rows a column": lambda trial: trial.gptq(rows=2),
    "chosen, 1 row a column": lambda trial: trial.gptq(rows=1),
    "chosen, 1/2 row a column": lambda trial: trial.gptq(rows=0.5),
    "shrinkage 0.05, 1/2 row a column": lambda trial: trial.gptq(0.05, rows=0.5),
}


def main() -> None:
    """Round every chosen layer in all ways."""
    arguments = parse_arguments()
    folder = _MODELS[arguments.model]
    source = load_source(folder)
    tasks: tuple[Task, ...] = (Task(), Task())
    if arguments.model == "fashion-text":
        files = ("prompts.txt", arguments.prompts), ("other-prompts.txt", 48)
        tasks = tuple(Task(prompts=tuple((folder / f).read_text().split("\n")[:n])) for f, n in files)
    placed = place(source.network, count_macs(source.network, source.signature)).quantized
    layers = {n: layer for n, layer in quantizable_layers(source.network).items() if n in placed}
    narrow = [name for name, layer in layers.items() if input_width(layer) <= arguments.widest]
    layers = {name: layers[name] for name in narrow[:: arguments.every]}
    rows, judged = (gather(source, layers, task, seed) for task, seed in zip(tasks, (0, 5000), strict=True))
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for name, layer in layers.items():
        weight = as_matrices(layer, weight_of(layer))[0].double()
        trial = Trial(
            weight, rows[name], judged[name][:2048], (arguments.weight_bits, arguments.activation_bits)
        )
        usual = trial.nearest()
        for way, error in WAYS.items():
            found[way].append(error(trial) / usual)
    table: list[list[str]] = [
        [way, f"{np.exp(np.mean(np.log(ratios))):.3f}", f"{max(ratios):.3f}"] for way, ratios in found.items()
    ]
    results: dict[str, Any] = {"layers": list(layers), "ratios": found}
    print_report(
        f"Output error relative to rounding to nearest, {arguments.model}, W{arguments.weight_bits}"
        f"A{arguments.activation_bits}, {len(layers)} layers with at most {arguments.widest} inputs",
        ("", "geometric mean", "worst layer"),
        table,
        record=results,
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
