"""Run a float graph in ONNX Runtime, any of its tensors shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from accuquant.errors import MissingDependencyError, SourceError, UsageError, last_line
from accuquant.export.read.session_device import CPU_SESSION, SessionDevice

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_SHAPE_OF = "accuquant/shape_of/"
Arrays = Mapping[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


def load_onnxruntime() -> Any:
    """Import ONNX Runtime. Raises MissingDependencyError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as fault:
        raise MissingDependencyError(
            "onnxruntime",
            got="no such package",
            expected="ONNX Runtime, which runs the float graph",
            remedy="pip install 'accuquant[onnxruntime]', or give --recipe",
        ) from fault
    return onnxruntime


class FloatSession:
    """A graph that read_model gave, in ONNX Runtime on `device`; its external data is mapped, not copied.

    Inputs and outputs in bfloat16 are float32 here: ONNX Runtime takes no such arrays. `shown` names tensors
    to give out beside the graph's outputs, `shapes_of` tensors whose shapes are wanted. Raises SourceError
    where ONNX Runtime cannot run the graph, UsageError where it cannot run on the device.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        *,
        shown: Sequence[str] = (),
        shapes_of: Sequence[str] = (),
        optimized: bool = True,
        device: SessionDevice = CPU_SESSION,
    ) -> None:
        onnxruntime = load_onnxruntime()
        self.device = device
        proto = ir.to_proto(model)
        _widen_border(proto.graph)
        self.outputs = [value.name for value in proto.graph.output]
        _show(proto.graph, shown, shapes_of)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised too
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.parent.resolve()))
        try:
            self._session: Any = device.open(onnxruntime, proto.SerializeToString(), options)
        except UsageError:
            raise
        except Exception as fault:  # ONNX Runtime has exception classes of its own
            raise SourceError(
                f"'{path}'",
                got=f"a graph that ONNX Runtime cannot run ({last_line(fault)})",
                expected="operators that ONNX Runtime has, to observe the scales with",
                remedy="Export the network without custom operators, or give --recipe",
            ) from fault

    def run(self, names: Sequence[str], feed: Arrays) -> list[npt.NDArray[Any]]:
        """Return the tensors called `names`; raises whatever ONNX Runtime does."""
        outputs: list[npt.NDArray[Any]] = self._session.run(list(names), _widened(feed))
        return outputs

    def shapes(
        self, names: Sequence[str], feed: Arrays
    ) -> tuple[list[npt.NDArray[Any]], dict[str, tuple[int, ...]]]:
        """Run once -> the graph's outputs, and the shape of each tensor in `names` (given as shapes_of)."""
        found = self.run([*self.outputs, *(_SHAPE_OF + name for name in names)], feed)
        count = len(self.outputs)
        sizes = zip(names, found[count:], strict=True)
        return found[:count], {name: tuple(map(int, shape)) for name, shape in sizes}


def _widened(feed: Arrays) -> dict[str, npt.NDArray[Any]]:
    halves = {name for name, array in feed.items() if array.dtype == ml_dtypes.bfloat16}
    return {n: np.asarray(array, np.float32) if n in halves else array for n, array in feed.items()}


def _widen_border(graph: onnx.GraphProto) -> None:
    """Make inputs and outputs float32 that are bfloat16; a Cast stands behind each (WidenHalfPass)."""
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    border = {v.name for v in graph.output if v.type.tensor_type.elem_type == half}
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for node in graph.node:
        if node.op_type == "Cast" and border.intersection(node.output):
            node.attribute[0].i = single


def _show(graph: onnx.GraphProto, shown: Sequence[str], shapes_of: Sequence[str]) -> None:
    there = {value.name for value in graph.output}
    for name in dict.fromkeys(shown):
        if name not in there:
            graph.output.append(onnx.ValueInfoProto(name=name))
    for name in dict.fromkeys(shapes_of):
        graph.node.append(onnx.helper.make_node("Shape", [name], [_SHAPE_OF + name]))
        graph.output.append(onnx.ValueInfoProto(name=_SHAPE_OF + name))
