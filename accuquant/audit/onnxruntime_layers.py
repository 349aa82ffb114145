"""The nodes that ONNX Runtime runs of a model, from the profile that it writes."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from accuquant.audit.engine_layers import EngineDescription, EngineLayer, EngineTensor
from accuquant.errors import EngineError
from accuquant.graph.neighbours import label
from accuquant.runtime.onnxruntime_runner import OnnxRuntimeRunner

#: ONNX Runtime's element types -> TensorRT's, which the audit speaks.
_DTYPES = {
    "float": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Int64",
    "int32": "Int32",
    "int8": "Int8",
    "uint8": "UInt8",
    "bool": "Bool",
}
_EVENT = "_kernel_time"
#: What its optimizers append to the name of a node that they replace.
_SUFFIXES = ("_quant", "_nchwc", "_nhwc", "_token_0", "_token_1")


class ProfiledSession(OnnxRuntimeRunner):
    """A runner that also tells what it ran, once, after the calls; the profile is written into `folder`."""

    def __init__(self, path: str | os.PathLike[str], folder: Path, *, num_threads: int | None = None) -> None:
        super().__init__(path, num_threads=num_threads)
        self._folder = folder

    def session_options(self, onnxruntime: Any) -> Any:
        """Return the runner's options, with the profile."""
        options = super().session_options(onnxruntime)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / "profile")
        return options

    def described(self, network: ir.Model) -> EngineDescription:
        """Return what the calls since the first one ran of `network`; no call may follow.

        Raises EngineError for a profile without nodes.
        """
        profile = Path(self._session.end_profiling())
        layers = read_profile(json.loads(profile.read_bytes()), _names(network.graph))
        profile.unlink()
        if not layers.layers:
            raise EngineError(
                f"profile of {self.name}",
                got="no node that was run",
                expected="a time for each node of the graph",
                remedy="Audit with --engine openvino; this ONNX Runtime writes no profile of its nodes",
            )
        return layers


def _names(graph: ir.Graph) -> dict[str, str]:
    """Return the name of each node by itself and by its output: blocked convolutions are called by that."""
    outputs = {str(node.outputs[0].name): label(node) for node in graph}
    return outputs | {label(node): label(node) for node in graph}


def read_profile(events: list[dict[str, Any]], names: Mapping[str, str]) -> EngineDescription:
    """Read the nodes from a profile in the order of their first run.

    `names` leads from what ONNX Runtime may call a node to its name in the graph.
    A node's time is the median over all runs but the first.
    """
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            node = name.removesuffix(_EVENT)
            times[node].append(float(event["dur"]) / 1e3)
            first.setdefault(node, event["args"])
    return EngineDescription(
        tuple(
            _layer(node, args, float(np.median(times[node][1:] or times[node])), names)
            for node, args in first.items()
        )
    )


def _layer(node: str, args: Mapping[str, Any], milliseconds: float, names: Mapping[str, str]) -> EngineLayer:
    kind = str(args["op_name"])
    return EngineLayer(
        name=node,
        kind=kind,
        inputs=_tensors(node, args.get("input_type_shape", [])),
        constants=(),
        outputs=_tensors(node, args.get("output_type_shape", [])),
        onnx_nodes=_nodes(node, names),
        library="onnxruntime",
        implementation=kind,
        milliseconds=milliseconds,
    )


def _nodes(node: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the node of the graph that a profiled one took its name from."""
    while node not in names:
        suffix = next((end for end in _SUFFIXES if node.endswith(end)), None)
        if suffix is None:
            return ()
        node = node.removesuffix(suffix)
    return (names[node],)


def _tensors(node: str, described: list[dict[str, list[int]]]) -> tuple[EngineTensor, ...]:
    """Return the tensors whose type is known; the scales and zero-points of a node are among them."""
    return tuple(
        EngineTensor(node, tuple(shape), _DTYPES[kind])
        for entry in described
        for kind, shape in entry.items()
        if kind in _DTYPES
    )
