"""Compare what `accuquant calibrate --dry-run` says with what a calibration takes: time and memory by stage.

    python benchmarks/estimated.py                       # the bundled image model, small settings
    python benchmarks/estimated.py --steps 50 --num-trajectories 64 --iterations 32 --shared-iterations 16

Each of the two runs in a process of its own, so that neither sees the other's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
from report import command, machine

from accuquant import CalibrationSettings, Task, calibrate, estimate, load_source
from accuquant.bundled import FASHION_DDPM, FASHION_TEXT
from accuquant.calibration.plan import GROUPS

MODELS = {"fashion-ddpm": FASHION_DDPM, "fashion-text": FASHION_TEXT}
_COUNTS = {
    "steps": 20,
    "num_trajectories": 16,
    "iterations": 4,
    "shared_iterations": 4,
    "batch_size": 8,
    "weight_bits": 8,
}


class Watch:
    """A Progress that keeps the seconds and the largest memory of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)
        self._name, self._begun = "", time.perf_counter()
        self._over = threading.Event()
        self._process = psutil.Process()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            now = self._process.memory_info().rss
            self.bytes[self._name] = max(self.bytes[self._name], now)

    def stage(self, name: str, total: int) -> None:
        """Begin a stage; all step groups are one."""
        now = time.perf_counter()
        self.seconds[self._name] += now - self._begun
        self._name, self._begun = GROUPS if name.startswith("step group ") else name, now

    def advance(self, units: int = 1) -> None:
        """Ignore the units."""

    def message(self, text: str) -> None:
        """Ignore the line."""

    def end(self) -> None:
        """Stop looking."""
        self.stage("", 0)
        self._over.set()


def main() -> None:
    """Estimate, calibrate, and print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="fashion-ddpm")
    for name, default in _COUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--part", choices=("estimate", "calibrate"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(_run(given)))
        return
    print(command(), machine(), sep="\n")
    said, taken = _child("estimate"), _child("calibrate")
    print(f"{'':28} {'seconds':>9} {'said':>9} {'ratio':>6} {'MB':>8} {'said':>8}")
    for name, stage in said["stages"].items():
        seconds, size = taken["seconds"][name], taken["bytes"].get(name, 0)
        print(
            f"{name:28} {seconds:9.1f} {stage['seconds']:9.1f} {stage['seconds'] / seconds:6.2f} "
            f"{size / 1e6:8.0f} {stage['bytes'] / 1e6:8.0f}"
        )
    whole = sum(taken["seconds"][name] for name in said["stages"])
    print(f"{'all':28} {whole:9.1f} {said['seconds']:9.1f} {said['seconds'] / whole:6.2f}")
    print(f"the estimate itself took {said['took']:.1f} s")


def _child(part: str) -> dict[str, Any]:
    words = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    result = subprocess.run(words, check=True, capture_output=True, text=True)
    parsed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return parsed


def _run(given: argparse.Namespace) -> dict[str, Any]:
    source = load_source(MODELS[given.model])
    task = Task.read(prompts=FASHION_TEXT / "prompts.txt") if given.model == "fashion-text" else Task()
    settings = CalibrationSettings(**{name: getattr(given, name) for name in _COUNTS})
    begun = time.perf_counter()
    if given.part == "estimate":
        found = estimate(source, settings, task=task)
        stages = {s.name: {"seconds": s.seconds, "bytes": s.need.total} for s in found.stages}
        return {"stages": stages, "seconds": found.seconds, "took": time.perf_counter() - begun}
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        calibrate(source, settings, output=Path(folder) / "r.safetensors", task=task, progress=watch)
    watch.end()
    return {"seconds": watch.seconds, "bytes": watch.bytes}


if __name__ == "__main__":
    main()
