"""Measure what a calibration's work folder costs: peak memory of the recording, seconds and bytes.

    python benchmarks/work_folder.py                 # the bundled model, 16 and 128 trajectories
    python benchmarks/work_folder.py --parts memory  # peaks alone

memory: the peak of the resident memory (ru_maxrss) of a fresh process that records, and is stopped before
the first scales are searched, above what it takes to load the model and call it once. time: a calibration
with a few iterations, and the share of its seconds that went into writing and reading the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from report import add_json_option, print_report

from accuquant._util.progress import Silent

_MB = 1e6
#: One arena, and a fixed threshold above which freed memory goes back at once: less allocator noise.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}


class _DoneError(Exception):
    """Raised where the measured part ends."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=("memory", "time"), default=("memory", "time"))
    parser.add_argument("--trajectories", nargs="+", type=int, default=[16, 128])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--child", nargs=2, metavar=("PART", "TRAJECTORIES"), help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def measure(part: str, count: int, steps: int, batch_size: int) -> dict[str, float]:
    """Calibrate the bundled model in this process."""
    import torch

    from accuquant.bundled import FASHION_DDPM
    from accuquant.calibration import CalibrationSettings, calibrate
    from accuquant.networks.network import count_macs
    from accuquant.pipelines.source import load_source

    torch.set_num_threads(1)
    source = load_source(FASHION_DDPM)
    count_macs(source.network, source.signature)
    settings = CalibrationSettings(
        steps=steps,
        num_trajectories=count,
        batch_size=batch_size,
        observer="minmax",
        iterations=4,
        shared_iterations=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "recipe.safetensors"
        if part == "memory":
            loaded = _peak()
            with suppress(_DoneError):
                calibrate(source, settings, output=output, progress=_Until("initial scales"))
            return {"loaded": loaded, "added": _peak() - loaded, "bytes": float(_size(Path(folder)))}
        spent = _watch_files()
        began = time.monotonic()
        calibrate(source, settings, output=output)
        return {"seconds": time.monotonic() - began, **spent}


class _Until(Silent):
    """Ends a calibration where a stage begins."""

    def __init__(self, name: str) -> None:
        self._name = name

    def stage(self, name: str, total: int) -> None:
        """Raise at the stage."""
        if name == self._name:
            raise _DoneError


def _watch_files() -> dict[str, float]:
    """Let all that writes and reads the work folder add its seconds to what is returned."""
    from accuquant.calibration import descent_state, input_moments, recording, row_store, work_folder
    from accuquant.calibration.tensor_file import TensorFile
    from accuquant.units import units

    spent = {"writing": 0.0, "reading": 0.0}

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                spent[kind] += time.monotonic() - began

        return run

    parts: list[tuple[str, Any, str]] = [
        ("writing", recording, "save_inputs"),
        ("writing", recording, "save_batch"),
        ("writing", row_store.RowWriter, "add"),
        ("writing", input_moments, "row_keys"),
        ("writing", units, "write_tree"),
        ("writing", descent_state, "write_tree"),
        ("writing", work_folder, "write_text"),
        *[("reading", TensorFile, name) for name in ("__getitem__", "row", "shape", "metadata", "whole")],
    ]
    for kind, owner, name in parts:
        setattr(owner, name, timed(kind, getattr(owner, name)))
    return spent


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def child(part: str, count: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure in a fresh process."""
    words = [sys.executable, __file__, "--child", part, str(count)]
    words += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    result = subprocess.run(
        words, env={**os.environ, **_ALLOCATOR}, capture_output=True, text=True, check=True
    )
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.child:
        part, count = arguments.child
        print(json.dumps(measure(part, int(count), arguments.steps, arguments.batch_size)))
        return
    found = {
        part: {count: child(part, count, arguments) for count in arguments.trajectories}
        for part in arguments.parts
    }
    rows = []
    for count in arguments.trajectories:
        memory, seconds = (found.get(part, {}).get(count, {}) for part in ("memory", "time"))
        files = seconds.get("writing", 0.0) + seconds.get("reading", 0.0)
        rows.append([
            str(count),
            f"{memory['added'] / _MB:.0f} MB" if memory else "",
            f"{memory['bytes'] / _MB:.0f} MB" if memory else "",
            f"{seconds['seconds']:.0f} s" if seconds else "",
            f"{files:.1f} s ({files / seconds['seconds']:.1%})" if seconds else "",
        ])  # fmt: skip
    print_report(
        f"The work folder, bundled model, {arguments.steps} steps, batches of {arguments.batch_size}",
        ["trajectories", "recording adds at most", "on disk after it", "calibration", "of it for the folder"],
        rows,
        record={"settings": vars(arguments), "found": found},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
