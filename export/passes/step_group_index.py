"""Derive the step group inside the graph from the timestep that the caller passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.graph.patch import Patch
from accuquant.graph.vocabulary import Role
from accuquant.groups import StepGroups


def step_group_index(
    graph: ir.Graph,
    groups: StepGroups,
    timestep_divisor: float = 1.0,
    *,
    name: str = "timestep",
    prefix: str = "accuquant/step_group",
) -> ir.Value:
    """Insert nodes at the head of `graph` that count the interior edges above the first timestep.

    The timestep may be int64 or float, a scalar or [n]: the scheduler's divided by `timestep_divisor`.
    Returns the group as an int64 scalar; the nodes are named under `prefix`. A timestep outside the
    calibrated range falls into the nearest group: the caller checks the range.
    Raises ExportError where the graph has no input called `name`.
    """
    timestep = next((value for value in graph.inputs if value.name == name), None)
    if timestep is None:
        raise ExportError(
            "graph inputs",
            got=", ".join(str(value.name) for value in graph.inputs),
            expected=f"an input named '{name}', from which the step group is derived",
            remedy="Give --input-names timestep=NAME, or use --lowering per-group",
        )
    patch = Patch(graph, prefix)
    flat = _as_float_vector(patch, timestep)
    first = patch.op("Gather", [flat, patch.constant(np.array([0], np.int64), "zero")], name="First", axis=0)
    if timestep_divisor != 1:
        first = patch.op(
            "Mul",
            [first, patch.constant(np.array(timestep_divisor, np.float32), "divisor")],
            name="Scheduler",
        )
    edges = patch.constant(np.array(groups.interior_edges, np.float32), "edges")
    above = patch.op("Less", [first, edges], name="Less")
    # Summed as float: integer reductions are missing in some engines, and G is small.
    ones = patch.op("Cast", [above], name="CastBool", to=ir.DataType.FLOAT)
    count = patch.op("ReduceSum", [ones], name="Count", keepdims=0)
    index = patch.op("Cast", [count], name="Index", role=Role.GROUP_INDEX, to=ir.DataType.INT64)
    index.type = ir.TensorType(ir.DataType.INT64)
    index.shape = ir.Shape([])
    patch.insert_before(graph[0])
    return index


def _as_float_vector(patch: Patch, timestep: ir.Value) -> ir.Value:
    """Cast and reshape the timestep, where it is not a float vector already.

    A node that does nothing is more than clutter: OpenVINO removes it and gives its name to the input too,
    and Optimum then looks for the input under that name.
    """
    value = timestep
    if timestep.dtype != ir.DataType.FLOAT:
        value = patch.op("Cast", [value], name="Cast", to=ir.DataType.FLOAT)
    if timestep.shape is None or timestep.shape.rank() != 1:
        minus_one = patch.constant(np.array([-1], np.int64), "flat")
        value = patch.op("Reshape", [value, minus_one], name="Reshape")
    return value
