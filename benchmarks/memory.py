"""Measure the memory of a calibration iteration for several numbers M of simulated steps.

    python benchmarks/memory.py

Each arm and M runs in a fresh process with one thread. "peak" is what two iterations add to the resident
memory after loading, at most (ru_maxrss); of `--repeats` processes the smallest counts, because an
allocator can only add to what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from report import add_json_option, print_report
from workload import MODELS, iteration, learnable_network, load_model, noise_segment, observed_recipe

from accuquant.denoising.process import DenoisingProcess

_ARMS = ("accuquant", "checkpoint", "exact")
_MB = 1e6
#: One arena, and a fixed threshold above which freed memory goes back at once: less allocator noise.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="bundled")
    parser.add_argument("--arms", nargs="+", choices=_ARMS, default=_ARMS)
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="M")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="processes a figure (default: %(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("ARM", "M"), help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def measure(model: str, arm: str, group_size: int, batch_size: int) -> dict[str, float]:
    """Run two iterations in this process -> bytes resident after loading, and at the peak."""
    torch.set_num_threads(1)
    source = load_model(model)
    recipe = observed_recipe(source, num_groups=1, affine=False, observer="minmax")
    process = DenoisingProcess(source.scheduler, max(50, group_size))
    segment = noise_segment(source, process, group_size, batch_size)
    run = iteration(learnable_network(source, recipe), process, segment, arm)
    loaded, loading_peak = _resident(), _peak()
    for _ in range(2):
        run()
    if _peak() <= loading_peak:
        raise SystemExit("Loading took more memory than the iterations: give a larger --batch-size.")
    return {"loaded": loaded, "peak": _peak()}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def measure_in_fresh_process(arguments: argparse.Namespace, arm: str, group_size: int) -> dict[str, float]:
    """Return the smallest of `--repeats` measurements."""
    command = [
        sys.executable, __file__, "--measure", arm, str(group_size),
        "--model", arguments.model, "--batch-size", str(arguments.batch_size),
    ]  # fmt: skip
    found: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        result = subprocess.run(
            command, env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True
        )
        found.append(json.loads(result.stdout.splitlines()[-1]))
    return min(found, key=lambda entry: entry["peak"] - entry["loaded"])


def main() -> None:
    """Measure every arm and M, and print the growth relative to the smallest M."""
    arguments = parse_arguments()
    if arguments.measure:
        arm, group_size = arguments.measure
        print(json.dumps(measure(arguments.model, arm, int(group_size), arguments.batch_size)))
        return
    rows, results = [], []
    for arm in arguments.arms:
        first = 0.0
        for group_size in arguments.group_sizes:
            found = measure_in_fresh_process(arguments, arm, group_size)
            added = found["peak"] - found["loaded"]
            first = first or added
            figures: dict[str, Any] = {"arm": arm, "M": group_size, **found, "relative": added / first}
            results.append(figures)
            print(f"{arm} M = {group_size}: {added / _MB:.0f} MB", file=sys.stderr)
            rows.append([
                f"{arm} M = {group_size}", f"{found['loaded'] / _MB:.0f}", f"{found['peak'] / _MB:.0f}",
                f"{added / _MB:.0f}", f"{added / first:.3f}",
            ])  # fmt: skip
    print_report(
        f"One calibration iteration, {arguments.model} model, batch {arguments.batch_size}, one thread",
        ("", "loaded MB", "peak MB", "added MB", f"relative to M = {arguments.group_sizes[0]}"),
        rows,
        notes=[f"Smallest of {arguments.repeats} fresh processes each; {_ALLOCATOR}"],
        record={"model": arguments.model, "batch_size": arguments.batch_size, "results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
