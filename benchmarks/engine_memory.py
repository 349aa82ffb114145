"""Measure where the memory of an engine goes: what each stage of loading a graph adds, in a fresh process.

    python benchmarks/engine_memory.py OUT/unet/model.onnx

"resident" is what the process holds after a stage, "peak" the most that it held until then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MB = 1e6


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an .onnx of a denoising network, with its text or without")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--image", type=int, nargs=2, default=(28, 28), metavar=("H", "W"))
    parser.add_argument("--tokens", type=int, nargs=1, default=(77,), help="of a text-guided network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and measurements to FILE")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Load and run the graph in this process -> (stage, bytes resident, bytes at the peak)."""
    stages: list[tuple[str, float, float]] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        yield
        stages.append((name, _resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0))

    with stage("python, numpy"):
        import numpy as np
    with stage("onnx"):
        import onnx  # noqa: F401
    with stage("accuquant.runtime"):
        from accuquant.runtime.openvino_runner import OpenVinoRunner
    with stage("openvino"):
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    runner = OpenVinoRunner(arguments.model, num_threads=arguments.threads)
    with stage("file checked and read"):
        runner.activate()

    def call(batch: int) -> Callable[[], Any]:
        feeds: dict[str, Any] = {}
        for spec in runner.input_specs:
            shape = (1,) if spec.name == "timestep" else (batch, *arguments.tokens, *spec.shape[2:])
            if spec.name == "sample":
                shape = (batch, spec.shape[1], *arguments.image)
            feeds[spec.name] = np.zeros(shape, spec.dtype)
        return lambda: runner.infer(feeds)

    with stage(f"batch {arguments.batch_size} compiled and run"):
        call(arguments.batch_size)()
    with stage("10 more calls"):
        for _ in range(10):
            call(arguments.batch_size)()
    with stage(f"batch {arguments.batch_size + 1} compiled and run too"):
        call(arguments.batch_size + 1)()
    with stage("released"):
        runner.deactivate()
    return stages


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def main() -> None:
    """Measure in a fresh process, and print the table."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--measure"], stdout=subprocess.PIPE, text=True, check=True
    )
    from report import print_report  # not above: it loads torch, which would be measured

    stages = json.loads(done.stdout.splitlines()[-1])
    before = [0.0, *(resident for _, resident, _ in stages)]
    print_report(
        f"Loading and running {arguments.model.name}, {arguments.model.stat().st_size / _MB:.1f} MB",
        ("after", "resident MB", "added MB", "peak MB"),
        [
            [name, *(f"{value / _MB:.0f}" for value in (resident, resident - earlier, peak))]
            for (name, resident, peak), earlier in zip(stages, before, strict=False)
        ],
        record={"stages": stages},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
