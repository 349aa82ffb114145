from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from accuquant.audit.graph_work import graph_work
from accuquant.errors import EngineError
from accuquant.export.read.trace import trace
from accuquant.networks.network import count_macs

SHAPES = {"sample": (1, 1, 8, 8), "timestep": (1,)}


def check_work(model: ir.Model, source: Any) -> None:
    """The layers' work is what torch's hooks count; the rest is QK^T and PV: 64 tokens of 32 channels."""
    work = list(graph_work(model, SHAPES).values())
    macs = [item.macs for item in work if item.macs is not None]
    assert len(macs) == len(work)
    layers = sum(count_macs(source.network, source.signature).values())
    assert sum(macs) == layers + 2 * 64 * 64 * 32


def test_the_work_of_layers_is_what_torch_counts(audit_source: Any, float_graph: Path) -> None:
    check_work(ir.load(float_graph), audit_source)


@pytest.mark.slow
def test_a_dynamic_graph_has_the_work_of_the_sizes_that_are_given(audit_source: Any, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    ir.save(trace(audit_source.network, audit_source.signature), path)
    model = ir.load(path)
    check_work(model, audit_source)
    with pytest.raises(EngineError, match=r"input 'sample': got a dynamic extent.*--optShapes sample"):
        graph_work(model, {"timestep": (1,)})
