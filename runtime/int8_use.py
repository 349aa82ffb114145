"""Which calibrated layers a compiled OpenVINO model really runs in int8."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accuquant._util.processor import describe_processor
from accuquant.errors import FloatLayersWarning, printable
from accuquant.runtime.executed_nodes import WORK_KINDS, ExecutedNode, with_lost_names

if TYPE_CHECKING:
    from accuquant.graph.calibrated import CalibratedLayer

#: OpenVINO's element types -> ours.
PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}
#: Layers that a warning names.
_NAMES = 4
_warned: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class LayerRun:
    """One calibrated layer in a compiled model: its multiply-accumulates, what it reads, the kernel."""

    layer: str
    macs: int
    precision: str
    kernel: str
    zero_point: bool = False


@dataclass(frozen=True)
class Int8Use:
    """What became of the calibrated layers. `unknown` are those that no node of the model names."""

    runs: tuple[LayerRun, ...]
    unknown: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the calibrated layers' work in int8, 0 to 1; NaN where none was found."""
        total = sum(run.macs for run in self.runs)
        inside = sum(run.macs for run in self.runs if run.precision == "int8")
        return inside / total if total else math.nan

    @property
    def in_float(self) -> tuple[LayerRun, ...]:
        """The calibrated layers that do not run in int8."""
        return tuple(run for run in self.runs if run.precision != "int8")

    def describe(self) -> str:
        """Return which layers do not run in int8, or may not, and a remedy; "" where every one does."""
        return " ".join(filter(None, (self._describe_float(), self._describe_unknown())))

    def _describe_float(self) -> str:
        out = self.in_float
        if not out:
            return ""
        kernels = ", ".join(sorted({run.kernel for run in out}))
        return (
            f"{len(out)} of {len(self.runs)} calibrated layers, {1 - self.share:.0%} of their work, do not "
            f"run in int8 on {describe_processor()} but in {kernels}: {_listed([run.layer for run in out])}. "
            f"{_remedy(out)}"
        )

    def _describe_unknown(self) -> str:
        if not self.unknown:
            return ""
        return (
            f"Of {len(self.unknown)} calibrated layers it is unknown whether they run in int8, because no "
            f"kernel on {describe_processor()} goes by their names: {_listed(self.unknown)}. They are in no "
            "share. "
            "`accuquant audit --engine openvino --layers` lists every kernel."
        )

    @staticmethod
    def merged(uses: Iterable[Int8Use]) -> Int8Use:
        """Return the use of several graphs as one."""
        every = tuple(uses)
        return Int8Use(
            tuple(run for use in every for run in use.runs),
            tuple(name for use in every for name in use.unknown),
        )


def int8_use(layers: Sequence[CalibratedLayer], nodes: Sequence[ExecutedNode]) -> Int8Use:
    """Find each calibrated layer among the `nodes` of a compiled model."""
    named = with_lost_names(tuple(nodes), {layer.node: layer.followers for layer in layers})
    work = {name: node for node in named if node.kind in WORK_KINDS for name in node.onnx_nodes}
    runs, unknown = [], []
    for layer in layers:
        node = work.get(layer.node)
        if node is None or not node.inputs:
            unknown.append(layer.layer)
        else:
            precision = work_precision(node)
            runs.append(LayerRun(layer.layer, macs(node), precision, node.implementation, layer.zero_point))
    return Int8Use(tuple(runs), tuple(unknown))


def work_precision(node: ExecutedNode) -> str:
    """Return the precision that a convolution or product computes in: that of the activation it reads.

    What the runtime graph calls its precision is the weight's where int8 weights are widened to float.
    """
    read = node.inputs[0].precision
    return PRECISIONS.get(read, read)


def macs(node: ExecutedNode) -> int:
    """Return the multiply-accumulates of one node; 0 where a shape is open.

    A weight has one axis more in a convolution of groups: [G, O / G, I / G, *kernel].
    """
    left, right = (node.inputs[index].shape if index < len(node.inputs) else () for index in (0, 1))
    output = node.outputs[0].shape
    if not left or not right or not output:
        return 0
    inner = right[1 + len(right) - len(output) :]
    if node.kind == "Convolution":
        return math.prod(output) * math.prod(inner)
    if node.kind == "Deconvolution":
        return math.prod(left) * math.prod(inner)
    return math.prod(output) * left[-1]


def warn_once(path: Path, use: Int8Use) -> None:
    """Warn of what `use` says of the file at `path`, once a process for each file's content."""
    text = use.describe()
    if text:
        _warn(path, text)


def warn_of_fp8(path: Path, layers: int) -> None:
    """Warn, once a process for each file's content, that the file at `path` has `layers` with FP8 pairs."""
    _warn(
        path,
        f"{layers} layers have FP8 pairs, which OpenVINO computes in float: the images are FP8's, the speed "
        "is not. FP8 is for GPUs from sm89 on; calibrate with --format int8 for a CPU.",
    )


def _warn(path: Path, text: str) -> None:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"'{printable(path)}': {text}", FloatLayersWarning, stacklevel=2)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return printable(", ".join(names[:_NAMES])) + rest


def _remedy(runs: Sequence[LayerRun]) -> str:
    audit = "`accuquant audit --engine openvino` says why for each of them"
    if all(run.zero_point for run in runs):
        return f"They have zero-points inside their pairs: export again with --affine shift; {audit}."
    return f"{audit}."
