"""Time a calibration iteration against the same forwards and backwards of the float UNet.

    python benchmarks/calibration_time.py

Float: M forwards without gradient, then M forwards and backwards to the latents, one step at a time, through
the same scheduler. AccuQuant: one whole iteration (roll out, M backwards, Adam). Rounds are interleaved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from report import add_json_option, print_report
from torch import nn
from workload import MODELS, iteration, learnable_network, load_model, noise_segment, observed_recipe

from accuquant._util.interleave import Times, time_interleaved
from accuquant.calibration.gradient import GRADIENT_ARMS, Segment, rollout
from accuquant.denoising.process import DenoisingProcess

_FLOAT = "float UNet"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="bundled")
    parser.add_argument("--arms", nargs="+", choices=GRADIENT_ARMS, default=["accuquant"])
    parser.add_argument("--group-size", type=int, default=5, metavar="M")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--symmetric", action="store_true", help="no zero-points")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    return parser.parse_args()


def float_work(network: nn.Module, process: DenoisingProcess, segment: Segment) -> Callable[[], None]:
    """Return the float UNet's M forwards, then M forwards and backwards."""

    def run() -> None:
        bound = segment.batch.bind(network)
        latents, states = rollout(process, bound, segment)
        direction = latents[-1] - segment.target
        for step, before, state in zip(segment.steps, latents, states, strict=False):
            leaf = before.detach().requires_grad_(True)
            after = process.step(bound, leaf, step, process.restore_state(state))
            (after * direction).sum().backward()

    return run


def main() -> None:
    """Time the float work and every arm, and print the ratios."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    source = load_model(arguments.model)
    recipe = observed_recipe(source, num_groups=1, affine=not arguments.symmetric)
    process = DenoisingProcess(source.scheduler, max(50, arguments.group_size))
    segment = noise_segment(source, process, arguments.group_size, arguments.batch_size)
    calls = {_FLOAT: float_work(source.network, process, segment)}
    for arm in arguments.arms:
        calls[arm] = iteration(learnable_network(source, recipe), process, segment, arm)
    times = time_interleaved(calls, rounds=arguments.rounds, warm_up=arguments.warm_up)
    print_report(
        f"One calibration iteration, {arguments.model} model, M = {arguments.group_size}, batch "
        f"{arguments.batch_size}, {arguments.threads} threads, {arguments.rounds} interleaved rounds",
        ("", "median ms", "p90 ms", "ratio to float"),
        [_row(name, entry, times[_FLOAT]) for name, entry in times.items()],
        record={
            "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
            "results": {name: entry.to_dict() for name, entry in times.items()},
            "ratio": {name: entry.median / times[_FLOAT].median for name, entry in times.items()},
        },
        json_path=arguments.json,
    )


def _row(name: str, entry: Times, base: Times) -> list[str]:
    return [name, f"{entry.median:.1f}", f"{entry.p90:.1f}", f"{entry.median / base.median:.2f}"]


if __name__ == "__main__":
    main()
