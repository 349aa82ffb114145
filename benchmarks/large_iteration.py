"""Run calibration iterations of a full-size UNet with a fixed conditioning, for several numbers of steps M.

    python benchmarks/export_size.py --models sd15 --work WORK
    python benchmarks/large_iteration.py --model sd15 --work WORK

Each M runs in a fresh process: the simulated network from the first command's recipe, one forward and one
backward for each of M steps with the copied end-point gradient, and Adam. "added" is what the iteration adds
to the resident memory after loading, at most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import add_json_option, print_report

_GB = 1e9
#: Freed memory goes back at once, so that the peak is what was needed.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--work", type=Path, required=True, help="the folder of export_size.py --work")
    parser.add_argument("--size", type=int, default=32, help="latent height and width (default: %(default)s)")
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[1, 2, 4], metavar="M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one iteration of `--measure` steps in this process -> memory and seconds."""
    import torch
    from large_networks import small_inputs

    from accuquant.calibration.gradient import Segment, gradient_arm
    from accuquant.calibration.learning import end_point_loss
    from accuquant.calibration.trajectory import TrajectoryBatch
    from accuquant.denoising.conditioning import Conditioning
    from accuquant.denoising.process import DenoisingProcess
    from accuquant.networks.simulate import quantize_network, quantized_layers
    from accuquant.pipelines.source import load_source
    from accuquant.recipe import Recipe

    torch.set_num_threads(arguments.threads)
    source = load_source(arguments.work / arguments.model)
    recipe = Recipe.load(arguments.work / f"{arguments.model}.safetensors")
    process = DenoisingProcess(source.scheduler, 50)
    sample, conditioning = small_inputs(source.signature, size=arguments.size)
    latents = torch.cat([torch.randn_like(sample)[None] for _ in range(len(process) + 1)])
    batch = TrajectoryBatch(latents, (process.save_state(()),) * len(process), Conditioning.of(conditioning))
    network = quantize_network(source.network, recipe.layers.values(), recipe.groups)
    del source
    for layer in quantized_layers(network).values():
        layer.learning = True
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-6)
    _forget_peak()
    loaded, began = _resident(), time.monotonic()
    arm = gradient_arm("accuquant")
    segment = Segment(batch, range(arguments.measure))
    arm(process, batch.bind(network), segment, lambda end, target: end_point_loss(end, target, 1e-3))
    optimizer.step()
    return {"loaded": loaded, "peak": _peak(), "seconds": time.monotonic() - began}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def _forget_peak() -> None:
    """Let the peak begin anew: loading holds the float network and its copy at once."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the largest resident memory since _forget_peak (VmHWM of Linux)."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def main() -> None:
    """Measure each M in a fresh process and print memory and time."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for steps in arguments.group_sizes:
        command = [sys.executable, *sys.argv, "--measure", str(steps)]
        done = subprocess.run(
            command, env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        results[str(steps)] = found
        rows.append([
            f"M = {steps}", f"{found['loaded'] / _GB:.2f}", f"{found['peak'] / _GB:.2f}",
            f"{(found['peak'] - found['loaded']) / _GB:.2f}", f"{found['seconds']:.0f}",
        ])  # fmt: skip
    print_report(
        f"One calibration iteration of {arguments.model}, batch 1, latent {arguments.size}x{arguments.size}, "
        f"{arguments.threads} threads",
        ("", "loaded GB", "peak GB", "added GB", "seconds"),
        rows,
        record={"size": arguments.size, "results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
