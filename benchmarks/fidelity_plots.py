"""Draw what `fidelity.py` measured: error against step, fidelity against group size and against time.

    pip install matplotlib
    python benchmarks/fidelity_plots.py fidelity-cells --network fashion-ddpm --setting W8A8 --output plots

Reads the cells in the cache folder, and draws only what is there: group sizes come from runs with
`-- --group-size N`. Calibrations of several seeds are one point, their median.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SIZE = (6.4, 3.6)
#: Options that say how much is spent; whoever is given others is no plain run of a method.
_SPENT = {"--preset", "--num-trajectories", "--calibration-steps", "--iterations"}
#: `accuquant calibrate --group-size`, where it is not given.
_DEFAULT_GROUP = 5
Run = dict[str, Any]


def read_runs(cache: Path, network: str, setting: str) -> list[Run]:
    """Return the figures of every cell of one network and setting."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cache.glob("*.json"))]
    return [run for run in runs if run.get("network") == network and run.get("setting") == setting]


def grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Return runs by `key`, in the order of the keys; those whose key is None are left out."""
    found = defaultdict(list)
    for run in runs:
        if key(run) is not None:
            found[key(run)].append(run)
    return {name: found[name] for name in sorted(found)}


def plain_method(run: Run) -> str | None:
    """Return the method of a run that was given no options but for how much to spend."""
    given = {word for word in run["options"] if word.startswith("--")}
    return str(run["method"]) if given <= _SPENT else None


def group_size(run: Run) -> int | None:
    """Return the group size of one of AccuQuant's own runs: what it was given, or the default."""
    given = dict(zip(run["options"], run["options"][1:], strict=False))
    if "--group-size" in given:
        return int(given["--group-size"])
    return _DEFAULT_GROUP if run["method"] == "accuquant" and plain_method(run) else None


def median_psnr(runs: Iterable[Run]) -> float:
    """Return the median over calibration seeds of the median PSNR over images."""
    return float(np.median([np.median(run["psnr"]) for run in runs]))


def error_against_step(axes: Axes, runs: list[Run]) -> bool:
    """Draw the latent error after each denoising step, a line for each method; False without runs."""
    methods = grouped(runs, plain_method)
    for method, same in methods.items():
        curve = np.median([run["mse_of_step"] for run in same], axis=0)
        axes.semilogy(np.arange(1, len(curve) + 1), curve, label=method)
    axes.set(xlabel="denoising step", ylabel="latent MSE, median")
    return bool(methods)


def fidelity_against_group_size(axes: Axes, runs: list[Run]) -> bool:
    """Draw PSNR against the steps that share scales, a line for each method; False without runs."""
    chosen = [run for run in runs if group_size(run) is not None]
    for method, same in grouped(chosen, lambda run: run["method"]).items():
        sizes = grouped(same, group_size)
        axes.set_xticks(list(sizes), [str(size) for size in sizes])
        axes.plot(list(sizes), [median_psnr(runs) for runs in sizes.values()], "o-", label=method)
    axes.set(xlabel="steps in a group", ylabel="PSNR, median, dB")
    return bool(chosen)


def fidelity_against_time(axes: Axes, runs: list[Run]) -> bool:
    """Draw PSNR against the processor time of the calibration, a point for each method; False without."""
    methods = grouped(runs, plain_method)
    for method, same in methods.items():
        axes.plot(np.median([run["cpu_seconds"] for run in same]), median_psnr(same), "o", label=method)
    axes.set(xlabel="calibration, CPU seconds", ylabel="PSNR, median, dB", xscale="log")
    return bool(methods)


PLOTS = {
    "error-against-step": error_against_step,
    "fidelity-against-group-size": fidelity_against_group_size,
    "fidelity-against-time": fidelity_against_time,
}


def main() -> None:
    """Draw the plots that the cells are there for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--network", default="fashion-ddpm")
    parser.add_argument("--setting", default="W8A8")
    parser.add_argument("--output", type=Path, default=Path("plots"))
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    arguments = parser.parse_args()
    runs = read_runs(arguments.cache, arguments.network, arguments.setting)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        figure = Figure(_SIZE, layout="constrained")
        axes = figure.add_subplot()
        if not draw(axes, runs):
            print(f"{name}: no cell of {arguments.network} {arguments.setting} to draw")
            continue
        axes.set_title(f"{arguments.network}, {arguments.setting}")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        path = arguments.output / f"{name}-{arguments.network}-{arguments.setting}.{arguments.format}"
        figure.savefig(path)
        print(path)


if __name__ == "__main__":
    main()
