"""Time training steps of the bundled network with threads that spin and threads that sleep, idle and crowded.

    python benchmarks/crowded.py            # every combination in turn, three rounds

Each run is a process of its own, because OpenMP reads its variables once. "crowded" keeps every core busy
with one more process. The last column is the ratio to brief spinning, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from report import command, machine

#: Name -> what is set for OpenMP; "brief" is what the command line sets.
POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "brief": {"GOMP_SPINCOUNT": "1000"},
}
_STEPS = 4


def main() -> None:
    """Run every combination in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inner:
        print(_seconds())
        return
    print(command(), machine(), sep="\n")
    for crowded in (False, True):
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(given.rounds):
            for policy in POLICIES:
                with _other_work(os.cpu_count() or 1 if crowded else 0):
                    times[policy].append(_run(policy))
        base = statistics.median(times["brief"])
        print("crowded" if crowded else "idle")
        for policy, values in times.items():
            median = statistics.median(values)
            print(f"  {policy:8} {median / _STEPS * 1000:8.0f} ms a step  {median / base:5.2f}")


def _run(policy: str) -> float:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment = {**kept, **POLICIES[policy]}
    command = [sys.executable, __file__, "--inner"]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@contextmanager
def _other_work(processes: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _seconds() -> float:
    import torch

    from accuquant.bundled import FASHION_DDPM
    from accuquant.pipelines.source import load_source

    torch.set_flush_denormal(True)
    network = load_source(FASHION_DDPM).network.requires_grad_(True)
    config: Any = network.config
    size = config.sample_size
    sample = torch.randn(8, 1, size, size, generator=torch.Generator().manual_seed(0))
    network(sample, 5).sample.sum().backward()
    begun = time.perf_counter()
    for _ in range(_STEPS):
        network(sample, 5).sample.sum().backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
