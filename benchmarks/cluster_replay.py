"""Check the model of a schedule against nodes: units that last as long as measured ones, and compute nothing.

    python benchmarks/cluster_speed.py --json cluster.json
    python benchmarks/cluster_replay.py --from cluster.json --nodes 2 3

Each unit of the plain loop is replayed by a worker that sleeps for as long as the unit took, on so many Ray
nodes of this machine with a worker each. Since nothing computes, a machine has as many nodes as it likes:
what is checked is how units are handed out and what that costs, not how fast a processor is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from cluster_schedule import makespan
from report import add_json_option, print_report

from accuquant.units.job import Job, no_networks
from accuquant.units.units import InMemory


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", type=Path, required=True, help="what cluster_speed.py wrote")
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 3])
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Replay every stage on every number of nodes, and print."""
    arguments = parse_arguments()
    runs = json.loads(arguments.source.read_text())["runs"]
    stages = stages_of(next(run for run in runs if run["workers"] == 0))
    found = {nodes: replayed(nodes, stages) for nodes in arguments.nodes}
    rows = [row(stage, units, {n: found[n][stage] for n in found}) for stage, units in stages.items()]
    print_report(
        "Seconds of stages: units that sleep on nodes, and the model of the schedule",
        ["stage", "units", "one after the other",
         *(f"{kind}, {n} nodes" for n in found for kind in ("measured", "model", "ratio"))],
        rows,
        notes=["Nothing computes: what is compared is the handing out of units."],
        record={"stages": stages, "seconds": found},
        json_path=arguments.json,
    )  # fmt: skip


def stages_of(run: dict[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of the units of each stage of a plain loop, without those that have none."""
    units = {stage: [seconds for one in maps for seconds in one] for stage, maps in run["units"].items()}
    return {stage: seconds for stage, seconds in units.items() if seconds}


def replayed(nodes: int, stages: dict[str, list[float]]) -> dict[str, float]:
    """Return the seconds that each stage takes on so many nodes."""
    from ray.cluster_utils import Cluster as Nodes

    from accuquant.units.ray_cluster import RayCluster

    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    try:
        with RayCluster(Job(no_networks, {}), {}, address=cluster.address) as engine:
            units = InMemory(engine)
            while (
                len(set(units.map("ready", [str(k) for k in range(4 * nodes)], node, lambda: None))) < nodes
            ):
                pass
            return {stage: taken(units, stage, seconds) for stage, seconds in stages.items()}
    finally:
        cluster.shutdown()


def node(_unit: str) -> str:
    """Return where a unit runs."""
    import ray

    time.sleep(0.1)
    name: str = ray.get_runtime_context().get_node_id()
    return name


def taken(units: InMemory, stage: str, seconds: list[float]) -> float:
    """Return how long a stage takes whose units sleep."""
    begun = time.perf_counter()
    names = [str(number) for number in range(len(seconds))]
    units.map(stage, names, lambda unit: time.sleep(seconds[int(unit)]), lambda: None)
    return time.perf_counter() - begun


def row(stage: str, units: list[float], found: dict[int, float]) -> list[str]:
    """Return the cells of a stage."""
    cells = [stage, str(len(units)), f"{sum(units):.2f}"]
    for nodes, measured in found.items():
        guess = makespan(units, nodes)
        cells += [f"{measured:.2f}", f"{guess:.2f}", f"{measured / guess:.2f}"]
    return cells


if __name__ == "__main__":
    main()
