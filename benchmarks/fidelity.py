"""Compare calibration methods: every method at every setting on every network, the same seeds for all.

    python benchmarks/fidelity.py --networks fashion-ddpm emoji-dit --settings W8A8 W4A8 --minutes 5
    python benchmarks/fidelity.py --methods accuquant q-diffusion --calibration-seeds 3
    python benchmarks/fidelity.py --table-only

A method is one of our own arms, or any name that `accuquant calibrate --method` takes. A cell is one network,
method, setting and calibration seed; its figures are kept as a JSON file in the cache folder, so a run can be
cut into pieces with --minutes, and several processes may share the folder. What stands behind `--` goes to
`accuquant calibrate` as it is. The cache does not know AccuQuant's own code: use a fresh folder after
changing it.

Images of seeds that no calibration saw (and of other prompts) are simulated in PyTorch and compared with full
precision's, seed by seed. FID2FP32 takes the bundled feature network, on gray images of 32 x 32 pixels: its
distances compare with each other, not with those in Inception features. Behind a figure stands its 95 %
bootstrap interval over the judged seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from fidelity_cells import ARMS, Bench, Cell, Setting, figures_path, measured
from fidelity_networks import NETWORKS, find_network
from fidelity_table import COLUMNS, row
from report import add_json_option, print_report

_SETTINGS = ("W8A8", "W6A6", "W4A8", "W4A6", "W3A8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", type=find_network, default=list(NETWORKS.values()), metavar="NAME|FOLDER")
    add(
        "--methods", nargs="+", default=list(ARMS), metavar="METHOD", help=f"{', '.join(ARMS)}, or --method's"
    )
    add("--settings", nargs="+", type=Setting.parse, default=[*map(Setting.parse, _SETTINGS)], metavar="W8A8")
    add("--calibration-seeds", type=int, default=1, help="calibrations of each cell (default: %(default)s)")
    add("--num-images", type=int, default=64, help="judged seeds (default: %(default)s)")
    add("--first-seed", type=int, default=100_000, help="the first judged one (default: %(default)s)")
    add("--minutes", type=float, help="start no further cell after so many")
    add("--cache-dir", type=Path, default=Path("fidelity-cells"))
    add("--table-only", action="store_true", help="print what the cache holds, compute nothing")
    add("calibrate", nargs="*", help="options of accuquant calibrate, behind --")
    add_json_option(parser)
    return parser.parse_args()


def cells(arguments: argparse.Namespace) -> list[list[Cell]]:
    """Return the cells, those that differ only in the calibration's seed together."""
    lines = product(arguments.networks, arguments.settings, arguments.methods)
    seeds, words = range(arguments.calibration_seeds), tuple(arguments.calibrate)
    return [[Cell(n, method, setting, k, words) for k in seeds] for n, setting, method in lines]


def figures_of(lines: list[list[Cell]], arguments: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Return what is measured of each of `lines`; make what is missing, while time is left."""
    begun, found = time.monotonic(), []
    benches = {
        network.name: Bench(network, arguments.cache_dir, arguments.num_images, arguments.first_seed)
        for network in arguments.networks
    }
    for line in lines:
        runs = []
        for cell in line:
            bench = benches[cell.network.name]
            late = arguments.minutes is not None and time.monotonic() - begun > 60 * arguments.minutes
            if not figures_path(cell, bench).is_file() and (late or arguments.table_only):
                continue
            runs.append(measured(cell, bench))
            print(f"{cell.name}: done", file=sys.stderr, flush=True)
        found.append(runs)
    return found


def main() -> None:
    """Measure the cells that the cache lacks, then print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.set_flush_denormal(True)
    arguments.cache_dir.mkdir(parents=True, exist_ok=True)
    lines = cells(arguments)
    found = figures_of(lines, arguments)
    names = [f"{line[0].network.name} {line[0].setting} {line[0].method}" for line in lines]
    missing = [
        f"{name} ({len(line) - len(runs)})" for name, line, runs in zip(names, lines, found, strict=True)
        if len(runs) < len(line)
    ]  # fmt: skip
    print_report(
        f"{arguments.num_images} images of other seeds, {torch.get_num_threads()} threads",
        COLUMNS,
        [row(name, runs) for name, runs in zip(names, found, strict=True) if runs],
        notes=[f"Not measured yet: {', '.join(missing)}"] if missing else [],
        record={"cells": [run for runs in found for run in runs]},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
