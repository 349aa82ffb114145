"""How fast int8 can be on a processor: the peaks of OpenVINO's kernels, and what they leave of fp32's time.

    python benchmarks/cpu_bound.py --model cifar
    python benchmarks/export_size.py --models sd15 --weight-bits 7 --work WORK
    python benchmarks/cpu_bound.py --model sd15 --work WORK --calls 3

The peaks are the best of large layers, each alone: multiply-accumulates a second of a 3x3 convolution, of a
convolution of one tap and of a product, in float32 and in int8. The bound takes fp32's own time, divides the
time of the calibrated layers by the ratio of the peaks, and adds nothing for quantization; what is float
stays as it is, attention (its two products and the softmax between) apart from the rest. The model's times
are OpenVINO's counters of each kernel, the least over some calls; peaks are the layer's share of the fastest
call, with one thread in processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from large_latency import float_graph
from large_networks import CONFIGURATIONS, small_inputs
from latency import Graphs
from openvino import opset13 as ov
from report import add_json_option, print_report
from workload import MODELS, latent_shape, load_model, noise_conditioning, observed_recipe

from accuquant._util.interleave import time_interleaved
from accuquant._util.processor import cpu_flags
from accuquant.errors import EngineError
from accuquant.graph.calibrated import calibrated_layers, find_followers
from accuquant.graph.skeleton import read_skeleton
from accuquant.recipe import Recipe
from accuquant.runtime.cpu_forms.rule import form_by_rule
from accuquant.runtime.executed_nodes import WORK_KINDS, ExecutedNode, with_lost_names
from accuquant.runtime.openvino_runner import OpenVinoRunner

#: Kind -> layers of full size: (rows or image edge, channels in, channels out).
_LAYERS = {
    "convolution 3x3": [(32, 128, 128), (32, 256, 256), (16, 512, 512), (64, 320, 320)],
    "convolution 1x1": [(32, 256, 256), (32, 512, 512), (64, 320, 320)],
    "product": [(1024, 256, 256), (1024, 640, 640), (4096, 320, 320), (256, 1280, 1280)],
}
#: Kind of a layer -> the peaks that bound it in int8: the runner may take products as convolutions.
_BOUNDED_BY = {
    "convolution 3x3": ("convolution 3x3",),
    "convolution 1x1": ("convolution 1x1",),
    "product": ("product", "convolution 1x1"),
}
#: What is not calibrated: what an engine runs as one kernel around a softmax, and the rest.
_FLOAT = ("attention", "other")
_PEAK_CALLS = 11


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(*MODELS, *CONFIGURATIONS), default="cifar")
    parser.add_argument("--work", type=Path, help="for a full-size model: export_size.py's --work")
    parser.add_argument("--calls", type=int, default=11, help="of each graph (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--groups", type=int, default=10, help="step groups (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    arguments = parser.parse_args()
    if (arguments.model in CONFIGURATIONS) != (arguments.work is not None):
        parser.error(f"give --work with one of {', '.join(CONFIGURATIONS)}, and without it with no other")
    return arguments


def layer(kind: str, edge: int, channels: int, outputs: int, *, int8: bool) -> Any:
    """Return an ov.Model of one layer; in int8 its input is unsigned levels, and its weights have 7 bits."""
    rng = np.random.default_rng(0)
    taps = (3, 3) if kind == "convolution 3x3" else (1, 1)
    image = kind.startswith("convolution")
    weight_shape = (outputs, channels, *taps) if image else (outputs, channels)
    shape = (1, channels, edge, edge) if image else (1, edge, channels)
    x = ov.parameter(shape, np.float32)
    value: Any = ov.relu(x)
    weight: Any = ov.constant(rng.standard_normal(weight_shape, np.float32))
    if int8:
        scale = np.full((outputs, *[1] * (len(weight_shape) - 1)), 0.01, np.float32)
        levels = rng.integers(-63, 64, weight_shape, np.int8)
        weight = ov.multiply(ov.convert(ov.constant(levels), "f32"), ov.constant(scale))
        limits = [ov.constant(np.float32(limit)) for limit in (0, 2.55, 0, 2.55)]
        value = ov.fake_quantize(value, *limits, 256)
    if not image:
        return openvino.Model([ov.matmul(value, weight, False, True)], [x])
    pad = [taps[0] // 2] * 2
    return openvino.Model([ov.convolution(value, weight, [1, 1], pad, pad, [1, 1])], [x])


def peaks_of(kind: str, threads: int) -> dict[str, tuple[float, str]]:
    """Return the best multiply-accumulates a second in fp32 and int8, and the kernels that reached them."""
    best = {"fp32": (0.0, ""), "int8": (0.0, "")}
    for edge, channels, outputs in _LAYERS[kind]:
        requests: dict[str, Any] = {}
        for name in best:
            model = layer(kind, edge, channels, outputs, int8=name == "int8")
            properties: dict[str, Any] = {
                "PERF_COUNT": True,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            compiled = openvino.Core().compile_model(model, "CPU", properties)
            requests[name] = compiled.create_infer_request()
            tensor = requests[name].get_input_tensor()
            tensor.data[:] = 1
        times = time_interleaved(
            {name: request.infer for name, request in requests.items()},
            rounds=2 * _PEAK_CALLS,
            warm_up=1,
            clock=time.process_time if threads == 1 else time.perf_counter,
        )
        rows, taps = (edge if kind == "product" else edge**2), (9 if kind == "convolution 3x3" else 1)
        for name, request in requests.items():
            share, kernel = _largest_kernel(request)
            rate = rows * taps * channels * outputs / (share * times[name].fastest / 1e3)
            best[name] = max(best[name], (rate, kernel))
    return best


def _largest_kernel(request: Any) -> tuple[float, str]:
    """Return the share of the largest kernel in the time of all, and its name."""
    taken = [
        (entry.real_time.total_seconds(), str(entry.exec_type))
        for entry in request.profiling_info
        if entry.status == entry.Status.EXECUTED
    ]
    most, kernel = max(taken)
    return most / sum(seconds for seconds, _ in taken), kernel


@dataclass(frozen=True)
class Pair:
    """A network as float and as int8 graph. `layers` has the kind of each calibrated layer by its node."""

    fp32: Path
    int8: Path
    layers: Mapping[str, str]
    feeds: dict[str, Any]


def profile(path: Path, pair: Pair, threads: int, calls: int, **options: Any) -> dict[str, float]:
    """Return the milliseconds of each kind of layer in a graph: of each kernel, the least over some calls."""
    with OpenVinoRunner(path, num_threads=threads, profile=True, **options) as runner:
        assert isinstance(runner, OpenVinoRunner)
        compiled = runner.compiled(pair.feeds)
        least: dict[str, float] = {}
        for _ in range(calls):
            request = compiled.create_infer_request()
            request.infer(pair.feeds)
            for entry in request.profiling_info:
                if entry.status == entry.Status.EXECUTED:
                    taken = entry.real_time.total_seconds() * 1e3
                    least[entry.node_name] = min(taken, least.get(entry.node_name, taken))
        skeleton = read_skeleton(path, error=EngineError)
        nodes = with_lost_names(runner.executed(), find_followers(skeleton))
    softmaxes = {node.name for node in skeleton.graph.node if node.op_type == "Softmax"}
    kinds = {node.name: kind_of(node, pair.layers, softmaxes) for node in nodes}
    sums = dict.fromkeys((*_LAYERS, *_FLOAT), 0.0)
    for name, milliseconds in least.items():
        sums[kinds.get(name, "other")] += milliseconds
    return sums


def kind_of(node: ExecutedNode, layers: Mapping[str, str], softmaxes: Set[str]) -> str:
    """Return the kind of the calibrated layer that a node computes, else "attention" or "other"."""
    if softmaxes & {*node.onnx_nodes}:
        return "attention"
    if node.kind not in WORK_KINDS:
        return "other"
    return next((layers[name] for name in node.onnx_nodes if name in layers), "other")


def kind_of_weight(shape: Sequence[int]) -> str:
    """Return the kind of a calibrated layer from the shape of its weight."""
    taps = int(np.prod(shape[2:])) if len(shape) > 2 else 0
    return "product" if taps == 0 else f"convolution {'3x3' if taps > 1 else '1x1'}"


def small_pair(arguments: argparse.Namespace, folder: Path) -> Pair:
    """Make both graphs of one of the small models."""
    source = load_model(arguments.model)
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "sample": rng.standard_normal((arguments.batch_size, *latent_shape(source)), np.float32),
        "timestep": np.array([500], np.float32),
    }
    conditioning = noise_conditioning(source, rows=arguments.batch_size)
    feeds |= {name: tensor.numpy() for name, tensor in conditioning.items()}
    graphs = Graphs(source, folder, arguments.groups)
    recipe = observed_recipe(source, num_groups=1, affine=False, observer="minmax")
    layers = {
        node: kind_of_weight(qparams.weight_shape)
        for name, qparams in recipe.layers.items()
        for node in graphs.node_names((name,))
    }
    return Pair(graphs.path("float"), graphs.path("shift"), layers, feeds)


def large_pair(arguments: argparse.Namespace) -> Pair:
    """Find both graphs of a full-size model in the folder of an export, batch 1."""
    work, name = arguments.work, arguments.model
    int8 = work / f"{name}-int8" / "unet" / "model.onnx"
    signature = float_graph(work / name, work / f"{name}-float")
    sample, conditioning = small_inputs(signature, size=signature.sizes["height"])
    feeds: dict[str, Any] = {key: tensor.numpy() for key, tensor in conditioning.items()}
    feeds |= {"sample": sample.numpy(), "timestep": np.array([500], np.float32)}
    recipe = Recipe.load(int8.parent.parent / "recipe.safetensors")
    layers = {
        found.node: kind_of_weight(recipe.layers[found.layer].weight_shape)
        for found in calibrated_layers(int8, error=EngineError)
    }
    return Pair(work / f"{name}-float" / "model.onnx", int8, layers, feeds)


def main() -> None:
    """Measure the peaks and both graphs, and print the bound."""
    arguments = parse_arguments()
    threads = arguments.threads
    peaks = {kind: peaks_of(kind, threads) for kind in _LAYERS}
    print_report(
        f"Peaks of OpenVINO's kernels, {threads} threads",
        ("layer", "kernel", "10^9 multiply-accumulates a second"),
        [
            (f"{kind}, {name}", kernel, f"{rate / 1e9:.0f}")
            for kind, entry in peaks.items()
            for name, (rate, kernel) in entry.items()
        ],
        record={},
        json_path=None,
    )
    spent, reached = measured(arguments)
    ratios = {
        kind: max(peaks[one]["int8"][0] for one in bounds) / peaks[kind]["fp32"][0]
        for kind, bounds in _BOUNDED_BY.items()
    } | dict.fromkeys(_FLOAT, 1.0)
    least = {kind: taken / ratios[kind] for kind, taken in spent.items()}
    total, shortest, got = (sum(entry.values()) for entry in (spent, least, reached))
    print_report(
        f"{arguments.model} model, batch {arguments.batch_size}, {threads} threads: where fp32's time goes",
        ("calibrated", "fp32 ms", "peaks, int8 / fp32", "int8 ms at that ratio", "int8 ms measured"),
        [
            *(_row(kind, spent[kind], f"{ratios[kind]:.2f}", least[kind], reached[kind]) for kind in spent),
            _row("all", total, "", shortest, got),
        ],
        notes=[f"Bound: {total / shortest:.2f} times as fast as fp32; reached, by kernel: {total / got:.2f}"],
        record={
            "peaks": {kind: {n: rate for n, (rate, _) in entry.items()} for kind, entry in peaks.items()},
            "fp32_ms": spent,
            "bound_ms": least,
            "int8_ms": reached,
            "bound": total / shortest,
            "reached": total / got,
        },
        json_path=arguments.json,
    )


def measured(arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Return the milliseconds of each kind of calibrated layer, and of the rest: in fp32, and in int8."""
    with tempfile.TemporaryDirectory() as folder:
        pair = small_pair(arguments, Path(folder)) if arguments.work is None else large_pair(arguments)
        form = form_by_rule(cpu_flags())[0]
        return (
            profile(pair.fp32, pair, arguments.threads, arguments.calls),
            profile(pair.int8, pair, arguments.threads, arguments.calls, form=form),
        )


def _row(kind: str, fp32: float, ratio: str, least: float, int8: float) -> list[str]:
    return [kind, f"{fp32:.2f}", ratio, f"{least:.2f}", f"{int8:.2f}"]


if __name__ == "__main__":
    main()
