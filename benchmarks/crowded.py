"""Time steps of a calibration: threads that spin, threads that sleep, one thread; idle and crowded.

    python benchmarks/crowded.py                                 # the bundled network, three rounds
    python benchmarks/crowded.py --width 4 --policies brief one  # one of 43 M weights, random ones

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

#: Name -> what is set for OpenMP; "brief" is what the command line sets, "one" is no second thread.
POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "brief": {"GOMP_SPINCOUNT": "1000"},
    "one": {"OMP_NUM_THREADS": "1"},
}
_STEPS = 4


def main() -> None:
    """Run every combination in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=1, help="multiply the network's channels by this")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=[*POLICIES])
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inner:
        print(_seconds(given.width))
        return
    print(command(), machine(), sep="\n")
    for crowded in (False, True):
        times: dict[str, list[float]] = {policy: [] for policy in given.policies}
        for _ in range(given.rounds):
            for policy in given.policies:
                with _other_work(os.cpu_count() or 1 if crowded else 0):
                    times[policy].append(_run(policy, given.width))
        base = statistics.median(times["brief"])
        print("crowded" if crowded else "idle")
        for policy, values in times.items():
            median = statistics.median(values)
            print(f"  {policy:8} {median / _STEPS * 1000:8.0f} ms a step  {median / base:5.2f}")


def _run(policy: str, width: int) -> float:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment = {**kept, **POLICIES[policy]}
    command = [sys.executable, __file__, "--inner", "--width", str(width)]
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


def _seconds(width: int) -> float:
    import torch
    from diffusers import UNet2DModel

    from accuquant.bundled import FASHION_DDPM

    config: dict[str, Any] = dict(UNet2DModel.load_config(FASHION_DDPM / "unet"))
    config["block_out_channels"] = [width * channels for channels in config["block_out_channels"]]
    torch.manual_seed(0)
    # a calibration learns no weights: gradients go through the activations alone
    network: Any = UNet2DModel.from_config(config).requires_grad_(False).eval()
    sample = torch.randn(8, 1, config["sample_size"], config["sample_size"]).requires_grad_(True)
    network(sample, 5).sample.sum().backward()
    begun = time.perf_counter()
    for _ in range(_STEPS):
        network(sample, 5).sample.sum().backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
