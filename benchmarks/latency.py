"""Time int8 with step groups on a CPU against fp32 and against other int8.

    python benchmarks/latency.py

One network call of a DDPM-CIFAR-sized UNet (35.7 M parameters, random weights) in every engine, in
interleaved rounds. All int8 graphs leave the same layers in float. "error" is the relative L2 distance to the
fp32 output: the weights are random, so it says that the graph computes the network, and nothing about images.
Where 8-bit weights saturate (no VNNI), ours have 7 bits; it changes no time. Beside other programs the
fastest round says more than the median; with one thread, so does --clock processor.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from competitors import NetworkCall, quantize_to_operators, quantize_with_nncf, trajectory_calls
from float_graph import FloatGraph, open_float_graph
from report import add_json_option, print_report
from torch_int8 import compiled_float, compiled_int8
from workload import MODELS, latent_shape, load_model, noise_conditioning, observed_recipe

from accuquant._util.interleave import Times, time_interleaved
from accuquant._util.processor import cpu_flags, saturates_8_bit_weights
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import AccuQuantError
from accuquant.export.write.onnx_file import write_onnx
from accuquant.pipelines.source import Source
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm
from accuquant.runtime.open_runner import open_runner
from accuquant.runtime.runner import Runner

_FAST = CpuForm(norms="channels", ranks="equal")
#: Name -> (engine, graph, options of the engine); the first is what the ratios are relative to. The form is
#: named, which the runner would choose by itself.
CANDIDATES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openvino-fp32": ("openvino", "float", {}),
    "openvino-fp32-channels": ("openvino", "float", {"form": _FAST}),
    "openvino-bf16": ("openvino", "float", {"precision": "bf16"}),
    "openvino-bf16-channels": ("openvino", "float", {"form": replace(_FAST, precision="bf16")}),
    "openvino-int8": ("openvino", "symmetric", {"form": AS_WRITTEN}),
    "openvino-int8-channels": ("openvino", "symmetric", {"form": _FAST}),
    "openvino-int8-shift": ("openvino", "shift", {"form": AS_WRITTEN}),
    "openvino-int8-shift-channels": ("openvino", "shift", {"form": _FAST}),
    "openvino-int8-inside": ("openvino", "shift", {"form": CpuForm("inside", ranks="equal")}),
    "openvino-int8-inside-channels": ("openvino", "shift", {"form": CpuForm("inside", "channels", "equal")}),
    "openvino-int8-products": (
        "openvino",
        "shift",
        {"form": CpuForm("inside", "channels", "equal", products="convolutions")},
    ),
    "openvino-int8-bordered-channels": (
        "openvino",
        "shift",
        {"form": CpuForm("bordered", "channels", "equal")},
    ),
    "openvino-int8-inside-bf16": (
        "openvino",
        "shift",
        {"form": CpuForm("inside", "channels", "equal", "bf16")},
    ),
    "openvino-int8-bordered-bf16": (
        "openvino",
        "shift",
        {"form": CpuForm("bordered", "channels", "equal", "bf16")},
    ),
    "openvino-int8-chosen": ("openvino", "shift", {}),
    "openvino-int8-zero-point": ("openvino", "zero_point", {"form": AS_WRITTEN}),
    "openvino-int8-per-group": ("openvino", "per-group", {"form": AS_WRITTEN}),
    "nncf": ("openvino", "nncf", {}),
    "nncf-default": ("openvino", "nncf-default", {}),
    "onnxruntime-fp32": ("onnxruntime", "float", {}),
    "onnxruntime-int8": ("onnxruntime", "symmetric", {}),
    "onnxruntime-qoperator": ("onnxruntime", "qoperator", {}),
    "torch-compile": ("torch", "float", {}),
    "torch-compile-int8": ("torch", "int8", {}),
}
_MEANINGS = {
    "openvino-int8": "AccuQuant's export, one graph for all step groups, symmetric, run as written",
    "openvino-int8-shift": "the same with zero-points, as an addition (the default, for every engine)",
    "openvino-int8-inside": "that file, its zero-points moved into the pairs by the runner",
    "openvino-int8-products": "that file, zero-points inside, products as convolutions",
    "openvino-int8-bordered-channels": "that file, convolutions pad by themselves behind the shift",
    "openvino-int8-chosen": "that file in the form that the runner takes by itself",
    "openvino-int8-zero-point": "zero-points inside the QDQ pairs in the file (--affine zero_point)",
    "openvino-int8-per-group": "symmetric, one step group's own graph (--lowering per-group)",
    "nncf": "nncf.quantize of the same layers only",
    "nncf-default": "nncf.quantize, also what is not a layer (additions, attention products)",
    "onnxruntime-int8": "the file of openvino-int8",
    "onnxruntime-qoperator": "quantize_static of the float file, QOperator format, its own defaults",
    "torch-compile-int8": "torchao's PT2E with X86InductorQuantizer, its own defaults",
}
_BASE = next(iter(CANDIDATES))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="cifar")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=CANDIDATES,
        default=list(CANDIDATES),
        metavar="NAME",
        help=f"of {', '.join(CANDIDATES)} (default: all that run here)",
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--groups", type=int, default=10, help="step groups (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument(
        "--pause-ms", type=float, default=20.0, help="before each call (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: what the process computed, which other work on the machine does not change",
    )
    parser.add_argument(
        "--graphs", type=Path, help="keep the graphs under this folder, and take those that are there"
    )
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.graphs is not None:
        arguments.graphs /= f"{arguments.model}-{arguments.groups}"
        arguments.graphs.mkdir(parents=True, exist_ok=True)
    if _BASE not in arguments.candidates:
        arguments.candidates.insert(0, _BASE)
    return arguments


class Graphs:
    """Makes each graph when it is first asked for."""

    def __init__(self, source: Source, folder: Path, num_groups: int) -> None:
        self._source = source
        self._folder = folder
        self._num_groups = num_groups
        self._float: FloatGraph = open_float_graph(source, folder / "float.onnx")
        self._paths: dict[str, Path] = {"float": self._float.path}
        # what an earlier run left in a folder that is kept
        self._paths |= {path.stem: path for path in folder.iterdir() if path.suffix in (".onnx", ".xml")}

    def path(self, name: str) -> Path:
        """Return the file of the graph called `name` in CANDIDATES."""
        if name not in self._paths:
            make = {"nncf": self._nncf, "qoperator": self._qoperator}.get(
                name.partition("-")[0], self._export
            )
            self._paths[name] = make(name)
        return self._paths[name]

    def node_names(self, layers: tuple[str, ...]) -> list[str]:
        """Return the names of the float graph's nodes that compute `layers`."""
        return self._float.node_names(layers)

    def _export(self, name: str) -> Path:
        affine = name in ("shift", "zero_point")
        bits = 7 if saturates_8_bit_weights(cpu_flags()) else 8
        recipe = observed_recipe(self._source, num_groups=self._num_groups, affine=affine, weight_bits=bits)
        written = write_onnx(
            self._float.path,
            recipe,
            self._folder / f"{name}.onnx",
            lowering="per-group" if name == "per-group" else "rescale",
            affine="zero_point" if name == "zero_point" else "shift",
        )
        return written[0]

    def calls(self) -> list[NetworkCall]:
        """Return the calls of one short trajectory, for those who calibrate."""
        source, process = self._source, DenoisingProcess(self._source.scheduler, self._num_groups)
        conditioning = noise_conditioning(source, rows=1)
        batches = record_trajectories(
            source.network, process, latent_shape(source), num_trajectories=1, batch_size=1, seed=0,
            conditioning=conditioning,
        )  # fmt: skip
        return trajectory_calls(process, batches, conditioning)

    def _nncf(self, name: str) -> Path:
        layers = tuple(observed_recipe(self._source, num_groups=1, affine=False, observer="minmax").layers)
        path = self._folder / f"{name}.xml"
        quantize_with_nncf(self._float, layers, self.calls(), path, only_layers=name == "nncf")
        return path

    def _qoperator(self, name: str) -> Path:
        path = self._folder / f"{name}.onnx"
        quantize_to_operators(self._float, self.calls(), path)
        return path


def network_call(runner: Runner, feeds: dict[str, Any]) -> Callable[[], Any]:
    """Return one call of a loaded graph -> its prediction."""
    output = runner.output_specs[0].name
    return lambda: runner.infer(feeds)[output]


def open_call(
    name: str, graphs: Graphs, source: Source, feeds: dict[str, Any], threads: int, stack: ExitStack
) -> Callable[[], Any]:
    """Load a candidate -> its call. Raises AccuQuantError or ImportError where it does not run here."""
    engine, graph, options = CANDIDATES[name]
    if engine == "torch":
        make = partial(compiled_int8, calls=graphs.calls()) if graph == "int8" else compiled_float
        return make(copy.deepcopy(source.network), feeds)
    runner = open_runner(graphs.path(graph), engine, num_threads=threads, **options)
    stack.callback(runner.deactivate)
    return network_call(runner, feeds)


def main() -> None:
    """Build every graph, time them in turn, and print the ratios."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    source = load_model(arguments.model)
    shape = (arguments.batch_size, *latent_shape(source))
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    feeds = {"sample": noise, "timestep": np.array([500], np.float32)}
    feeds |= {
        name: tensor.numpy() for name, tensor in noise_conditioning(source, rows=arguments.batch_size).items()
    }
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        graphs = Graphs(source, arguments.graphs or Path(temporary), arguments.groups)
        calls: dict[str, Callable[[], Any]] = {}
        missing = []
        for name in arguments.candidates:
            try:
                calls[name] = open_call(name, graphs, source, feeds, arguments.threads, stack)
            except (AccuQuantError, ImportError) as fault:
                missing.append(f"{name} does not run here: {fault}")
        outputs = {name: call() for name, call in calls.items()}
        times = time_interleaved(
            calls,
            rounds=arguments.rounds,
            warm_up=arguments.warm_up,
            pause=arguments.pause_ms / 1e3,
            lead_in=1,
            clock=time.process_time if arguments.clock == "processor" else time.perf_counter,
        )
    errors = {name: _relative_error(output, outputs[_BASE]) for name, output in outputs.items()}
    print_report(
        f"One call, {arguments.model} model, batch {arguments.batch_size}, {arguments.threads} threads, "
        f"{arguments.rounds} interleaved rounds, {arguments.groups} step groups, {arguments.clock} time",
        ("", "median ms", "fastest ms", "times as fast as OpenVINO fp32", "by the fastest", "error"),
        [_row(name, entry, times[_BASE], errors[name]) for name, entry in times.items()],
        notes=[*(f"{name}: {_MEANINGS[name]}" for name in times if name in _MEANINGS), *missing],
        record={
            "settings": {
                key: value for key, value in vars(arguments).items() if key not in ("json", "graphs")
            },
            "results": {n: {**t.to_dict(), "relative_error": errors[n]} for n, t in times.items()},
            "speed": {n: times[_BASE].median / t.median for n, t in times.items()},
            "speed_of_the_fastest": {n: times[_BASE].fastest / t.fastest for n, t in times.items()},
        },
        json_path=arguments.json,
    )


def _relative_error(output: Any, wanted: Any) -> float:
    return float(np.linalg.norm(output - wanted) / np.linalg.norm(wanted))


def _row(name: str, entry: Times, base: Times, error: float) -> list[str]:
    speed, least = base.median / entry.median, base.fastest / entry.fastest
    times = [f"{entry.median:.1f}", f"{entry.fastest:.1f}"]
    return [name, *times, f"{speed:.2f}", f"{least:.2f}", f"{error:.4f}"]


if __name__ == "__main__":
    main()
