"""Measure what workers bring and cost, stage by stage, and what 8 and 64 of them would.

    python benchmarks/cluster_speed.py --rounds 3 --json cluster.json
    python benchmarks/cluster_speed.py --from cluster.json --workers 8 64    # the model alone

The plain loop, one worker and two take turns in one run, each in a fresh process with one thread for each
worker. What one worker costs is told apart: seconds of single units that are longer, and seconds between
them. What two can bring at most on this machine is what two plain loops at once do. The seconds in which Ray
starts and workers open the network are told apart. The model (cluster_schedule.py) takes the seconds of
single units from the plain loop, hands them to workers as the real schedule does, and adds what the process
that hands them out does alone. It is compared with what two workers took here, where two processes share the
memory and the caches of one machine.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from cluster_run import SETTINGS, run_apart
from cluster_schedule import Measured, predicted
from report import add_json_option, print_report

#: What StageClock calls the stages whose units have other names.
_STAGES = {
    "full-precision trajectories": ("trajectories",),
    "initial scales": ("scales",),
    "refined scales": ("refined",),
    "weight rounding": ("rounding",),
    "layer sensitivity": ("sensitivity",),
    "weight scales and biases": ("gradient", "judging"),
    "step groups": ("step groups",),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[2, 8, 64], help="what the model is asked for"
    )
    parser.add_argument("--source", help="the folder of a pipeline (default: the bundled image model)")
    parser.add_argument("--without-two", action="store_true", help="measure the loop and one worker alone")
    parser.add_argument("--from", dest="earlier", type=Path, help="measurements of an earlier run")
    parser.add_argument("--trajectories", type=int, default=SETTINGS["num_trajectories"])
    parser.add_argument("--batch-size", type=int, default=SETTINGS["batch_size"])
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"])
    parser.add_argument("--iterations", type=int, default=SETTINGS["iterations"], help="of either kind")
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Measure, or read what was measured, and print."""
    arguments = parse_arguments()
    if arguments.earlier is not None:
        runs = json.loads(arguments.earlier.read_text())["runs"]
    else:
        runs, n = [], arguments.iterations
        chosen = {
            "num_trajectories": arguments.trajectories, "batch_size": arguments.batch_size,
            "steps": arguments.steps, "iterations": n, "shared_iterations": n, "source": arguments.source,
        }  # fmt: skip
        for _ in range(arguments.rounds):
            for workers in (0, 1) if arguments.without_two else (0, 1, 2):
                found = run_apart(workers, **chosen)
                runs.append({"workers": workers, **found})
        if not arguments.without_two:
            runs.append({"workers": "two loops", **two_loops(**chosen)})
    digests = {run["sha256"] for run in runs}
    print_report(
        "Seconds of a calibration, medians",
        ["stage", "units", "loop", "1 worker", "ratio", "2 workers", "speed-up",
         *(f"model, {n}" for n in arguments.workers)],
        rows(runs, arguments.workers),
        notes=[
            f"Recipes: {'the same bytes in all runs' if len(digests) == 1 else f'{len(digests)} DIFFERENT'}",
            "Start of Ray and workers (not in the table): " + ", ".join(
                f"{n} workers {median(run['startup'] for run in of(runs, n)):.0f} s"
                for n in (1, 2)
                if of(runs, n)
            ),
            *costs(runs),
        ],
        record={"runs": runs},
        json_path=arguments.json,
    )  # fmt: skip


def two_loops(**chosen: Any) -> dict[str, Any]:
    """Run two plain loops at once, and return the slower one."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: run_apart(0, **chosen), range(2)))
    return max(found, key=lambda run: run["whole"])


def costs(runs: list[dict[str, Any]]) -> list[str]:
    """Say what one worker costs, and what two can bring at most."""
    one = of(runs, 1)[0]
    # a stage without units has those of the one before noted
    units = {
        stage: [seconds for units in maps for seconds in units]
        for stage, maps in one["units"].items()
        if one["shared"][stage] > 0.01
    }
    between = sum(one["shared"][stage] - sum(seconds) for stage, seconds in units.items())
    count = sum(map(len, units.values()))
    lines = [
        f"One worker: {1000 * between / count:.1f} ms between units, in {count} units",
        f"Ray's own processes beside one worker: {one['housekeeping'] / one['whole']:.1%} of a core",
    ]
    if together := of(runs, "two loops"):
        most = 2 * median(run["whole"] for run in of(runs, 0)) / together[0]["whole"]
        lines.append(f"Two plain loops at once on this machine do {most:.2f} times the work of one")
    return lines


def of(runs: list[dict[str, Any]], workers: int | str) -> list[dict[str, Any]]:
    """Return the runs with so many workers."""
    return [run for run in runs if run["workers"] == workers]


def rows(runs: list[dict[str, Any]], asked: list[int]) -> list[list[str]]:
    """Return the table's rows: every stage, and the whole."""
    table, sums = [], [0.0] * len(asked)
    for stage, names in _STAGES.items():
        seconds = [seconds_of(runs, n, (stage,)) for n in (0, 1, 2)]
        # the loop has no units of an iteration: there is nobody to share them with
        measured = [Measured.of(run, stage, names) for run in of(runs, 1 if "gradient" in names else 0)]
        guesses = [median(predicted(m, n) for m in measured) for n in asked]
        sums = [total + guess for total, guess in zip(sums, guesses, strict=True)]
        table.append(row(stage, str(measured[0].count), seconds, guesses))
    wholes = [seconds_of(runs, n, tuple(_STAGES)) for n in (0, 1, 2)]
    return [*table, row("all of these", "", wholes, sums)]


def seconds_of(runs: list[dict[str, Any]], workers: int, stages: tuple[str, ...]) -> float:
    """Return the median seconds of `stages` together, not a number where nobody measured so many workers."""
    found = [sum(stage_seconds(run, stage) for stage in stages) for run in of(runs, workers)]
    return median(found) if found else nan


def stage_seconds(run: dict[str, Any], stage: str) -> float:
    """Return the seconds of a stage, 0 where it did not take place."""
    return float(run["stages"].get(stage, 0.0))


def row(name: str, units: str, seconds: list[float], guesses: list[float]) -> list[str]:
    """Return the cells of a stage."""
    loop, one, two = seconds
    return [
        name, units, f"{loop:.1f}", f"{one:.1f}", f"{one / loop:.2f}", f"{two:.1f}", f"{loop / two:.2f}",
        *(f"{guess:.1f}" for guess in guesses),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
