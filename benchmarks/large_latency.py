"""Time one call of a full-size UNet with random weights on OpenVINO: int8 against float32, in turn.

    python benchmarks/export_size.py --models sd15 --work WORK
    python benchmarks/large_latency.py --model sd15 --work WORK

The float graph is the network's own trace, the int8 graph the export of the first command: in the form that
the runner chooses, and as it is written. "error" is the relative distance to the float output; with random
weights it says that the graph computes the network, and nothing about images. bf16 is timed where the
processor has it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from large_networks import CONFIGURATIONS, small_inputs
from report import add_json_option, print_report

from accuquant._util.interleave import time_interleaved
from accuquant.errors import EngineError
from accuquant.export.read.trace import trace
from accuquant.export.write.graph_files import save_graphs
from accuquant.networks.signature import Signature
from accuquant.pipelines.source import load_source
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm
from accuquant.runtime.open_runner import open_runner
from accuquant.runtime.runner import Runner

#: Name -> (whether it is the export, options of the engine); the first is what the ratios are relative to.
CANDIDATES: dict[str, tuple[bool, dict[str, Any]]] = {
    "fp32": (False, {}),
    "bf16": (False, {"precision": "bf16"}),
    "int8-written": (True, {"form": AS_WRITTEN}),
    "int8-without-products": (True, {"form": CpuForm("inside", "channels", "equal")}),
    "int8-chosen": (True, {}),
    "int8-chosen-bf16": (True, {"precision": "bf16"}),
}
_BASE = next(iter(CANDIDATES))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CONFIGURATIONS, default="sd15")
    parser.add_argument("--work", type=Path, required=True, help="the folder of export_size.py --work")
    parser.add_argument("--size", type=int, help="latent height and width (default: the model's own)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="as in latency.py")
    add_json_option(parser)
    return parser.parse_args()


def float_graph(folder: Path, output: Path) -> Signature:
    """Write the float network's graph where it is not there yet, and return its signature."""
    source = load_source(folder)
    if not (output / "model.onnx").is_file():
        output.mkdir(parents=True, exist_ok=True)
        model: ir.Model = trace(source.network, source.signature)
        save_graphs({"model.onnx": model}, output, "model.onnx_data", external_data=True)
    return source.signature


def network_call(runner: Runner, feeds: dict[str, Any]) -> Callable[[], Any]:
    """Return one call of a loaded graph -> its prediction."""
    return lambda: runner.infer(feeds)["out_sample"]


def main() -> None:
    """Load both graphs, time them in turn, and print the ratio."""
    arguments = parse_arguments()
    work = arguments.work
    signature = float_graph(work / arguments.model, work / f"{arguments.model}-float")
    size = arguments.size or signature.sizes["height"]
    sample, conditioning = small_inputs(signature, size=size)
    feeds: dict[str, Any] = {name: tensor.numpy() for name, tensor in conditioning.items()}
    feeds |= {"sample": sample.numpy(), "timestep": np.array([500], np.float32)}
    paths = {
        False: work / f"{arguments.model}-float" / "model.onnx",
        True: work / f"{arguments.model}-int8" / "unet" / "model.onnx",
    }
    calls: dict[str, Callable[[], Any]] = {}
    missing: list[str] = []
    for name in dict.fromkeys((_BASE, *arguments.candidates)):
        exported, options = CANDIDATES[name]
        try:
            runner = open_runner(paths[exported], "openvino", num_threads=arguments.threads, **options)
        except EngineError as fault:
            missing.append(f"{name} does not run here: {fault}")
            continue
        calls[name] = network_call(runner, feeds)
    outputs = {name: call() for name, call in calls.items()}
    times = time_interleaved(
        calls,
        rounds=arguments.rounds,
        warm_up=1,
        clock=time.process_time if arguments.clock == "processor" else time.perf_counter,
    )
    wanted, base = outputs[_BASE], times[_BASE]
    errors = {
        name: float(np.linalg.norm(output - wanted) / np.linalg.norm(wanted))
        for name, output in outputs.items()
    }
    print_report(
        f"One call of {arguments.model}, batch 1, latent {size}x{size}, {arguments.threads} threads, "
        f"{arguments.rounds} interleaved rounds, {arguments.clock} time",
        ("", "median ms", "fastest ms", "times as fast as fp32", "by the fastest", "error"),
        [
            [
                name,
                f"{t.median:.0f}",
                f"{t.fastest:.0f}",
                f"{base.median / t.median:.2f}",
                f"{base.fastest / t.fastest:.2f}",
                f"{errors[name]:.4f}",
            ]
            for name, t in times.items()
        ],
        notes=["Random weights", *missing],
        record={
            "size": size,
            "results": {name: t.to_dict() for name, t in times.items()},
            "relative_error": errors,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
