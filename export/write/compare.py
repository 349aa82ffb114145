"""Compare what an export of a foreign .onnx computes with what its source does, on one input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from accuquant.errors import AccuQuantError, ExportError, MissingDependencyError, last_line
from accuquant.export.read.float_session import FloatSession, load_onnxruntime
from accuquant.export.read.onnx_inputs import Feed, OnnxInputs, inputs_of, load_feeds, random_feeds
from accuquant.export.write.coverage import Coverage, Shapes, coverage, shapes_wanted
from accuquant.graph.vocabulary import COMPARED_KEY
from accuquant.recipe import Recipe

#: How far the graph as it was read may be from the file, as a share of the output's norm. Only the order of
#: float operations differs; a graph that computed in half precision rounded more than ours does.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2
_SEED = 1
_NUMPY = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}


@dataclass(frozen=True)
class Comparison:
    """What an export is: errors on one input, relative to the output's norm, and how much of it is int8.

    `float_error` is the float graph's against the source, `int8_error` the export's against the float graph;
    None where it could not be measured, and `reasons` say why.
    """

    given: str
    float_error: float | None
    int8_error: float | None
    coverage: Coverage
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{what}: {error:.2g} of the output's norm, on {self.given}"
            for what, error in (
                ("the float graph is off its source by", self.float_error),
                ("int8 is off the float graph by", self.int8_error),
            )
            if error is not None
        ]
        lines += [f"not compared: {reason}" for reason in self.reasons]
        lines.append(str(self.coverage))
        lines += [f"warning: {n} of them stay float: {reason}" for reason, n in self.coverage.left.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "inputs": self.given,
            "float_error": self.float_error,
            "int8_error": self.int8_error,
            "not_compared": list(self.reasons),
            "int8_layers": self.coverage.int8,
            "layers": self.coverage.layers,
            "int8_share": self.coverage.share,
            "left_float": dict(self.coverage.left),
        }


class SourceComparison:
    """Holds what the float graph computes, before the lowering changes it, until there is an int8 one.

    Where ONNX Runtime is missing or cannot run a graph, the comparison says so and the export goes on. Raises
    ExportError where the float graph is not what the file computes, and what load_feeds does.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path,
        recipe: Recipe,
        *,
        inputs: Path | None = None,
        input_names: Mapping[str, str] | None = None,
    ) -> None:
        self._reasons: list[str] = []
        self._given = f"the first call of {inputs}" if inputs else "random inputs"
        self._outputs: list[npt.NDArray[Any]] | None = None
        self.float_error: float | None = None
        shapes: Shapes | None = None
        try:
            wanted = inputs_of(model.graph, path, input_names)
            self._feed = _feed(wanted, recipe, inputs)
            self.timestep = float(self._feed[wanted.timestep].reshape(-1)[0])
            shapes = self._run_float(model, path)
        except MissingDependencyError:
            self._reasons.append("onnxruntime is not installed (pip install 'accuquant[onnxruntime]')")
        except AccuQuantError as fault:
            if inputs is not None:
                raise
            self._reasons.append(fault.got)
        self._coverage = coverage(model.graph, shapes)
        if self._outputs is not None:
            self._compare_with_source(path, _tolerance(model))

    def finish(self, graphs: Sequence[Path], recipe: Recipe) -> Comparison:
        """Run the int8 graph, that of the feed's step group, and write the result into every graph."""
        int8_error = None
        if self._outputs is not None:
            edges = recipe.groups.interior_edges
            timestep = self.timestep * recipe.signature.timestep_divisor
            group = sum(timestep < edge for edge in edges) if len(graphs) > 1 else 0
            try:
                outputs = _run_file(graphs[group], self._feed)
                int8_error = _distance(outputs, self._outputs)
            except Exception as fault:  # ONNX Runtime has exception classes of its own
                self._reasons.append(f"int8, which ONNX Runtime cannot run here ({last_line(fault)})")
        result = Comparison(self._given, self.float_error, int8_error, self._coverage, tuple(self._reasons))
        for graph in graphs:
            _add_metadata(graph, result)
        return result

    def _run_float(self, model: ir.Model, path: Path) -> Shapes:
        names = shapes_wanted(model.graph)
        session = FloatSession(model, path, shapes_of=names)
        try:
            outputs, shapes = session.shapes(names, self._feed)
        except Exception as fault:  # ONNX Runtime has exception classes of its own
            raise ExportError(
                f"'{path}'",
                got=f"an error for {self._given} ({last_line(fault)})",
                expected="inputs that fit together",
                remedy="Give --inputs FILE.npz with arrays of the sizes that the network takes",
            ) from fault
        if all(array.dtype.kind in "fiub" and np.isfinite(array).all() for array in outputs):
            self._outputs = outputs
        else:
            self._reasons.append(f"the float graph's output is not finite on {self._given}; give --inputs")
        return shapes

    def _compare_with_source(self, path: Path, tolerance: float) -> None:
        assert self._outputs is not None
        if any(array.dtype == ml_dtypes.bfloat16 for array in self._feed.values()):
            self._reasons.append("the source, of which ONNX Runtime computes no bfloat16")
            return
        try:
            found = _run_file(path, self._feed)
        except Exception as fault:  # ONNX Runtime has exception classes of its own
            self._reasons.append(f"the source, which ONNX Runtime cannot run ({last_line(fault)})")
            return
        self.float_error = _distance(self._outputs, found)
        if not self.float_error <= tolerance:
            raise ExportError(
                f"'{path}'",
                got=f"a float graph that is off by {self.float_error:.2g} of the output's norm",
                expected=f"at most {tolerance:g}: converting an older opset or half precision went wrong",
                remedy="Export the network again with opset_version=21, in float32, and report this file",
            )


def _feed(wanted: OnnxInputs, recipe: Recipe, inputs: Path | None) -> Feed:
    if inputs is not None:
        return load_feeds(inputs, wanted)[0]
    known = {dim for spec in wanted.specs for dim in spec.shape if isinstance(dim, str)}
    sizes = {name: size for name, size in recipe.signature.sizes.items() if name in known}
    return random_feeds(wanted, 1, _SEED, sizes=sizes)[0]


def _tolerance(model: ir.Model) -> float:
    """Return the tolerance for a graph by what it was stored in."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    values = (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
    return _HALF_TOLERANCE if any(value.dtype in halves for value in values) else _TOLERANCE


def _run_file(path: Path, feed: Feed) -> list[npt.NDArray[Any]]:
    """Run a file as it is written: kernels that an optimizer fuses differ from one processor to the next."""
    onnxruntime = load_onnxruntime()
    if any(array.dtype == ml_dtypes.bfloat16 for array in feed.values()):
        session = FloatSession(ir.load(path), path, optimized=False)
        return session.run(session.outputs, feed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = {
        v.name: feed[v.name].astype(_NUMPY.get(v.type, feed[v.name].dtype)) for v in session.get_inputs()
    }
    outputs: list[npt.NDArray[Any]] = session.run(None, arrays)
    return outputs


def _distance(found: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]) -> float:
    """Return the largest error of an output, as a share of its norm."""
    shares = []
    for one, other in zip(found, expected, strict=True):
        difference = np.linalg.norm(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        norm = np.linalg.norm(np.asarray(other, np.float64))
        shares.append(float(difference / norm) if norm else float(difference))
    return max(shares)


def _add_metadata(path: Path, comparison: Comparison) -> None:
    """Append an entry to a written .onnx: protobuf messages that follow each other are one message."""
    entry = onnx.StringStringEntryProto(key=COMPARED_KEY, value=json.dumps(comparison.to_dict()))
    with open(path, "ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())
