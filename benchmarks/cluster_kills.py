"""Kill workers at random moments of calibrations, and compare the recipes with an undisturbed one.

    python benchmarks/cluster_kills.py                            # the bundled image model, 20 kills
    python benchmarks/cluster_kills.py --kills 5 --workers 3

A thread sends SIGKILL to a worker that is drawn at random, after a time that is drawn too, until the
calibration ends; calibrations follow one another until so many workers were killed. A unit may be killed
three times by chance: then the run ends with an error that says so, and the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from cluster_run import SETTINGS
from report import add_json_option, print_report

from accuquant._util.progress import Silent
from accuquant.bundled import FASHION_DDPM
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.errors import ClusterError
from accuquant.pipelines.source import load_source
from accuquant.units.cluster import Cluster


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=15.0, help="mean seconds between two kills")
    parser.add_argument("--trajectories", type=int, default=SETTINGS["num_trajectories"])
    parser.add_argument("--source", default=str(FASHION_DDPM))
    parser.add_argument("--seed", type=int, default=0)
    add_json_option(parser)
    return parser.parse_args()


class Stages(Silent):
    """Remembers which stage is running."""

    name = "starting"

    def stage(self, name: str, total: int) -> None:
        """Begin a stage."""
        self.name = name


class Killer:
    """Kills workers of this process while the block of `at_work` runs, `left` in all."""

    def __init__(self, seed: int, every: float, left: int) -> None:
        self.left = left
        self.killed: list[str] = []
        self._rng, self._every = random.Random(seed), every

    @contextmanager
    def at_work(self, stages: Stages) -> Iterator[None]:
        """Kill in a thread of its own."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(stages, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, stages: Stages, over: threading.Event) -> None:
        while self.left and not over.wait(self._rng.uniform(0, 2 * self._every)):
            workers = [p for p in psutil.Process().children(recursive=True) if _computes(p)]
            if workers and stages.name != "starting":
                self._rng.choice(workers).send_signal(signal.SIGKILL)
                self.killed.append(stages.name)
                self.left -= 1


def _computes(process: psutil.Process) -> bool:
    """Say whether a process is one of ours and has a unit: Ray names it by the method that it runs."""
    try:
        return "_Served.compute" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def main() -> None:
    """Calibrate, kill, compare and print."""
    arguments = parse_arguments()
    source = load_source(arguments.source)
    settings = CalibrationSettings(**SETTINGS | {"num_trajectories": arguments.trajectories})
    killer = Killer(arguments.seed, arguments.every, arguments.kills)
    same = runs = resumed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.safetensors"
        calibrate(source, settings, output=reference)
        while killer.left:
            output, runs = Path(folder) / f"{runs}.safetensors", runs + 1
            while not output.exists():
                stages = Stages()
                try:
                    with killer.at_work(stages):
                        calibrate(
                            source,
                            settings,
                            output=output,
                            progress=stages,
                            cluster=Cluster(arguments.workers),
                        )
                except ClusterError as fault:
                    print(fault)
                    resumed += 1
            same += output.read_bytes() == reference.read_bytes()
            left = len(list(Path(folder).glob("*.partial")))
            print(
                f"run {runs}: {len(killer.killed)} kills so far, {same} recipes the same, {left} folders left"
            )
    print_report(
        f"Workers killed while calibrating, {arguments.workers} at a time",
        ["kills", "calibrations", "the same bytes", "resumed after three kills of one unit", "seconds"],
        [[str(len(killer.killed)), str(runs), str(same), str(resumed), f"{time.monotonic() - began:.0f}"]],
        notes=["Killed in: " + ", ".join(
            f"{stage} ({killer.killed.count(stage)})" for stage in dict.fromkeys(killer.killed)
        )],
        record={"killed": killer.killed, "runs": runs, "same": same, "resumed": resumed, "pid": os.getpid()},
        json_path=arguments.json,
    )  # fmt: skip
    if same != runs:
        raise SystemExit("recipes differ")


if __name__ == "__main__":
    main()
