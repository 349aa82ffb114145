"""The facts of one audit: where the work runs, what became of each QDQ pair, what the engine is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from accuquant.audit.engine_layers import EngineDescription, EngineLayer, read_engine_layers
from accuquant.audit.graph_work import graph_work
from accuquant.audit.kernel_kind import KERNEL_KINDS, kernel_kind
from accuquant.audit.pair_fusion import (
    OUTCOMES,
    PairFusion,
    layer_name,
    operators_of,
    pair_fusions,
    work_layer,
)
from accuquant.engines import BuildOptions, CompiledEngine
from accuquant.errors import EngineError
from accuquant.export.lint.check_graph import Violation
from accuquant.export.lint.check_model import find_violations
from accuquant.export.read.as_written import read_as_written
from accuquant.graph.neighbours import label
from accuquant.graph.roles import check_roles

#: The compiler's names of element types -> ours.
PRECISIONS = {
    "Int8": "int8",
    "UInt8": "int8",
    "Half": "fp16",
    "BFloat16": "bf16",
    "Float": "fp32",
    "FP8": "fp8",
    "Int4": "int4",
}
NOT_FOUND = "not found"
#: The precisions of quantized work.
QUANTIZED = ("int8", "fp8")


@dataclass(frozen=True)
class NodeWork:
    """One convolution or matrix product: how much it computes, and in what.

    `precision` is what it reads ("int8", "fp16", ...), or NOT_FOUND. `apart` says that a kernel of its own
    applies its scale and bias, which the convolution's kernel could have done.
    """

    node: str
    layer: str
    op_type: str
    macs: int | None
    precision: str
    kernel: str
    apart: bool


@dataclass(frozen=True)
class Kernel:
    """One kernel of the engine: its kind (KERNEL_KINDS), what it reads and writes, the nodes it computes."""

    name: str
    kind: str
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    traffic: float
    implementation: str = ""
    milliseconds: float | None = None


@dataclass(frozen=True)
class EngineAudit:
    """What a compiler made of one graph.

    `kernel_list` has every kernel in the engine's order, `weight_bytes` its constants by precision.
    `not_understood` holds what could not be read: lines of the log, kinds of kernels, nodes without a
    shape. `num_engines` is how many such engines the model needs (one a step group where that is so).
    `milliseconds` is what one run takes, None where nothing was run; then there are no times of kernels
    either. `plan_bytes` is 0 where the engine is no file.
    """

    name: str
    target: str
    library: str
    seconds: float
    plan_bytes: int
    weight_bytes: Mapping[str, float]
    activation_bytes: int | None
    kernel_list: tuple[Kernel, ...]
    work: tuple[NodeWork, ...]
    pairs: tuple[PairFusion, ...]
    not_understood: tuple[str, ...]
    num_engines: int = 1
    milliseconds: float | None = None

    @property
    def kernels(self) -> dict[str, int]:
        """How many kernels of each of KERNEL_KINDS the engine has."""
        counts = Counter(kernel.kind for kernel in self.kernel_list)
        return {kind: counts[kind] for kind in KERNEL_KINDS}

    @property
    def kind_milliseconds(self) -> dict[str, float]:
        """The milliseconds that the kernels of each kind take in one run; empty where nothing was run."""
        if self.milliseconds is None:
            return {}
        times: Counter[str] = Counter()
        for kernel in self.kernel_list:
            times[kernel.kind] += kernel.milliseconds or 0.0  # type: ignore[assignment]
        return {kind: float(times[kind]) for kind in KERNEL_KINDS}

    @property
    def num_kernels(self) -> int:
        """How many kernels one run launches."""
        return sum(count for kind, count in self.kernels.items() if kind != "sync")

    @property
    def traffic(self) -> float:
        """The bytes that one run moves between kernels and memory: what bounds all but convolutions."""
        return sum(kernel.traffic for kernel in self.kernel_list)

    @property
    def macs(self) -> int:
        """The multiply-accumulates of all convolutions and matrix products."""
        return sum(item.macs or 0 for item in self.work)

    def share(self, precision: str) -> float:
        """Return the share of the multiply-accumulates that run in `precision`, 0 to 1."""
        inside = sum(item.macs or 0 for item in self.work if item.precision == precision)
        return inside / self.macs if self.macs else 0.0

    @property
    def quantized(self) -> str:
        """The precision of the quantized work: "fp8" where most of it is that, else "int8"."""
        return max(QUANTIZED, key=self.share)

    @property
    def outcomes(self) -> dict[str, int]:
        """How many pairs have each outcome."""
        counts = Counter(pair.outcome for pair in self.pairs)
        return {outcome: counts[outcome] for outcome in OUTCOMES}

    @property
    def num_apart(self) -> int:
        """How many convolutions and matrix products leave their scale or bias to another kernel."""
        return sum(item.apart for item in self.work)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        data = asdict(self)
        data["kernels"] = self.kernels
        data["kind_milliseconds"] = self.kind_milliseconds
        data["macs"] = self.macs
        data["mac_share"] = {name: self.share(name) for name in dict.fromkeys(i.precision for i in self.work)}
        data["traffic"] = self.traffic
        data["num_kernels"] = self.num_kernels
        data["outcomes"] = self.outcomes
        return data


def audit_engine(
    model: Path, compiled: CompiledEngine, options: BuildOptions, *, name: str, num_engines: int = 1
) -> EngineAudit:
    """Compare the .onnx file `model` with the engine that was compiled from it with `options`.

    Raises EngineError where the log describes no layer: the engine was compiled without detailed
    profiling verbosity, or by a library whose log has another form. Raises SourceError for a file that
    cannot be read, and for one of an earlier version, whose nodes have no roles.
    """
    network = read_as_written(model)
    check_roles(network, model)
    engine = read_engine_layers(compiled.log)
    if not engine.layers:
        raise _no_layers(compiled, engine)
    return compare(
        network,
        engine,
        {name: shape.opt for name, shape in options.profile.items()},
        find_violations(network, model),
        name=name,
        target=options.target.name,
        library=f"{compiled.library} {compiled.version}",
        seconds=compiled.seconds,
        plan_bytes=compiled.plan.stat().st_size,
        num_engines=num_engines,
    )


def compare(
    network: ir.Model,
    engine: EngineDescription,
    shapes: Mapping[str, tuple[int, ...]],
    violations: Sequence[Violation],
    **facts: Any,
) -> EngineAudit:
    """Compare a graph with the engine that was made of it for inputs of `shapes`.

    `violations` are what the linter says of the graph, where the engine is one that it knows. `facts` are
    the other fields of the EngineAudit.
    """
    operators = operators_of(network.graph)
    work = _work(network, engine, shapes)
    return EngineAudit(
        weight_bytes=_weight_bytes(engine.layers),
        activation_bytes=engine.activation_bytes,
        kernel_list=tuple(_kernel(layer, operators) for layer in engine.layers),
        work=work,
        pairs=pair_fusions(network.graph, engine, violations),
        not_understood=(
            *engine.not_understood,
            *(f"kernel '{x.name}' of kind {x.kind}" for x in engine.layers if kernel_kind(x, {}) == "other"),
            *(f"{x.op_type} '{x.node}': no shape" for x in work if x.macs is None),
            *(f"{x.op_type} '{x.node}': no layer" for x in work if x.precision == NOT_FOUND),
        ),
        **facts,
    )


def _work(
    network: ir.Model, engine: EngineDescription, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[NodeWork, ...]:
    return tuple(_node_work(work.node, work.macs, engine) for work in graph_work(network, shapes).values())


def _node_work(node: ir.Node, macs: int | None, engine: EngineDescription) -> NodeWork:
    name = label(node)
    main = work_layer(engine, name)
    named = engine.layers_of(name)
    # A product that the compiler turned into pointwise work still runs in the type that it reads.
    layer = main or (named[0] if named else None)
    precision = NOT_FOUND if layer is None else _precision(layer)
    apart = main is not None and precision in QUANTIZED and _leaves_work(main, named, half=engine.is_half)
    return NodeWork(
        node=name,
        layer=layer_name(node),
        op_type=node.op_type,
        macs=macs,
        precision=precision,
        kernel=layer.name if layer is not None else "",
        apart=apart,
    )


def _leaves_work(main: EngineLayer, named: Sequence[EngineLayer], *, half: bool) -> bool:
    """Say whether another kernel finishes what `main` began: it names the node too, or gets its raw sums.

    Raw sums are float32, which tells them from a finished output in a half-precision engine alone.
    """
    raw = half and any(tensor.dtype == "Float" for tensor in main.outputs)
    return raw or any(other is not main for other in named)


def _precision(layer: EngineLayer) -> str:
    dtype = layer.levels_type or layer.precision
    return PRECISIONS.get(dtype, dtype.lower())


def _weight_bytes(layers: Sequence[EngineLayer]) -> dict[str, float]:
    """Return the bytes of the constants by precision; one that several layers read counts once."""
    constants = {tensor.name: tensor for layer in layers for tensor in layer.constants}
    found: Counter[str] = Counter()
    for tensor in constants.values():
        found[PRECISIONS.get(tensor.dtype, tensor.dtype.lower())] += tensor.num_bytes  # type: ignore[assignment]
    return dict(sorted(found.items()))


def _kernel(layer: EngineLayer, operators: Mapping[str, str]) -> Kernel:
    return Kernel(
        name=layer.name,
        kind=kernel_kind(layer, operators),
        precision=_precision(layer),
        inputs=tuple(f"{tensor.dtype} {list(tensor.shape)}" for tensor in layer.inputs),
        outputs=tuple(f"{tensor.dtype} {list(tensor.shape)}" for tensor in layer.outputs),
        onnx_nodes=layer.onnx_nodes,
        traffic=layer.traffic,
        implementation=layer.implementation,
        milliseconds=layer.milliseconds,
    )


def _no_layers(compiled: CompiledEngine, engine: EngineDescription) -> EngineError:
    count = len(engine.not_understood)
    return EngineError(
        f"log of {compiled.library} {compiled.version}",
        got=f"{count} layers in an unknown form" if count else "no description of a layer",
        expected="the layers of the finished engine",
        remedy="Compile with --backend tensorrt_rtx and detailed profiling verbosity",
    )
