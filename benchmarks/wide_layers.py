"""Measure the peak memory and the time of rounding one wide layer.

    python benchmarks/wide_layers.py

Each layer runs in a fresh process with one thread: rows of random, correlated inputs are gathered as a
calibration gathers them, and the layer's weight is rounded by them. "peak" is of the whole process
(ru_maxrss), "rows" the file that its inputs lie in meanwhile. "output error" is what rounding adds to the
outputs on other rows of the same kind, relative to rounding to nearest.
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
from pathlib import Path
from typing import Any

from report import add_json_option, print_report

_GB = 1e9
#: Freed memory goes back at once, so that the peak is what was needed.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
#: Name -> kind, inputs, outputs: Flux's single blocks' proj_out, and convolutions of SD 1.5 and SDXL.
LAYERS = {
    "flux-proj-out": ("linear", 15360, 3072),
    "conv-1280": ("conv", 1280, 1280),
    "conv-2560": ("conv", 2560, 1280),
}
_CALLS = 16
_HELD_OUT = 256


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the rows lie (default: the temporary folder)")
    parser.add_argument("--measure", choices=LAYERS, help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def measure(name: str, bits: int, folder: Path) -> dict[str, float]:
    """Gather the inputs of one layer and round its weight, in this process."""
    import numpy as np
    import torch
    from torch import nn

    from accuquant.calibration.input_moments import MomentSampler, moments_of, plan_rows
    from accuquant.calibration.rounding import compensate
    from accuquant.calibration.unfolding import random_rows
    from accuquant.qparams import LayerQParams, fingerprint
    from accuquant.scales.observer import weight_scale

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, inputs, outputs = LAYERS[name]
    convolves = kind == "conv"
    layer: nn.Conv2d | nn.Linear = nn.Linear(inputs, outputs)
    if convolves:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    layer.requires_grad_(False)
    mixing = torch.randn(inputs // 16, inputs) / (inputs // 16) ** 0.5

    def draw() -> torch.Tensor:
        # a sixteenth of the directions carries most of the power
        x = (torch.randn(2048, inputs // 16) @ mixing).add_(torch.randn(2048, inputs), alpha=0.2).add_(0.3)
        return x.reshape(8, 16, 16, inputs).permute(0, 3, 1, 2).contiguous() if convolves else x

    plans = plan_rows({name: layer}, _CALLS)
    sampler = MomentSampler({name: layer}, plans, 0, folder / "0.rows")
    began = time.monotonic()
    with sampler.watch():
        for _ in range(_CALLS):
            _run_hooks(layer, draw())
    drawn = sampler.finish(), folder / "0.rows"
    gathered = time.monotonic()
    weight = layer.weight.numpy(force=True)
    qparams = LayerQParams(
        name, "conv2d" if convolves else "linear", weight.shape, fingerprint(weight),
        weight_scale(weight, bits, 0), np.array([8 / 255], np.float32), weight_bits=bits,
    )  # fmt: skip
    began_rounding = time.monotonic()
    rounded = compensate(layer, qparams, moments_of(name, layer, [drawn]))
    seconds = time.monotonic() - began_rounding
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    rows = random_rows(layer, draw(), _HELD_OUT, torch.Generator().manual_seed(1)).double().numpy()
    errors = [
        _output_error(rows, weight, found) for found in (rounded, qparams)
    ]  # the larger copies are made after the peak was read
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "gathering": gathered - began, "rounding": seconds, "peak": peak, "file": float(size),
        "relative_error": errors[0] / errors[1],
    }  # fmt: skip


def _run_hooks(layer: Any, x: Any) -> None:
    """Let the sampler see `x`, without the time of the layer's own product."""
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (x,))


def _output_error(rows: Any, weight: Any, qparams: Any) -> float:
    import numpy as np

    total = 0.0
    levels = qparams.quantized_weight(weight).reshape(len(weight), -1)
    for start in range(0, len(weight), 256):
        some = slice(start, start + 256)
        added = weight[some].reshape(len(weight[some]), -1) - levels[some] * qparams.weight_scale[some, None]
        error = rows @ added.T.astype(np.float64)
        if qparams.bias_correction is not None:
            error -= qparams.bias_correction[some]
        total += float(np.square(error).sum())
    return total


def main() -> None:
    """Measure each layer in a fresh process."""
    arguments = parse_arguments()
    if arguments.measure:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(json.dumps(measure(arguments.measure, arguments.weight_bits, Path(folder))))
        return
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for name in arguments.layers:
        command = [sys.executable, *sys.argv, "--measure", name]
        done = subprocess.run(
            command, env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        results[name] = found
        kind, inputs, outputs = LAYERS[name]
        rows.append([
            f"{name}: {kind}, {inputs * (9 if kind == 'conv' else 1)} inputs, {outputs} outputs",
            f"{found['peak'] / _GB:.2f}", f"{found['file'] / _GB:.2f}", f"{found['gathering']:.0f}",
            f"{found['rounding']:.0f}", f"{found['relative_error']:.3f}",
        ])  # fmt: skip
    print_report(
        f"Rounding one wide layer, {arguments.weight_bits}-bit weights, one thread",
        ("", "peak GB", "rows GB", "gathering s", "rounding s", "output error"),
        rows,
        record={"results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
