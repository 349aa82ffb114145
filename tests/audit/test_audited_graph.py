"""Which graph is audited and with what it is compared; no compiler is needed to say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from accuquant.audit.audit_model import find_graph, write_float_twin
from accuquant.audit.engine_audit import audit_engine
from accuquant.engines import BuildOptions, CompiledEngine, Target
from accuquant.errors import EngineError, SourceError
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest

Export = Callable[..., Path]


def test_the_float_twin_has_no_trace_of_the_lowering(export_tiny: Export, tmp_path: Path) -> None:
    twin = onnx.load(write_float_twin(export_tiny(scales="grouped", zero_point=-100), tmp_path))
    operators = {node.op_type for node in twin.graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear", "Pad", "Div", "Gather"}


def test_a_folder_is_audited_by_its_first_graph(audit_source: Any, tmp_path: Path) -> None:
    graphs = ("unet/group_00.onnx", "unet/group_01.onnx")
    Manifest(
        pipeline_class="DDIMPipeline",
        component="unet",
        lowering="per-group",
        precision="fp16",
        opset=21,
        graphs=graphs,
        groups=StepGroups((1000.0, 500.0, 0.0)),
        signature=audit_source.signature,
        model_hash="",
        num_inference_steps=2,
        accuquant_version="0",
    ).save(tmp_path)
    assert find_graph(tmp_path) == (tmp_path / graphs[0], 2)


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file or folder.*accuquant\.json"):
        find_graph(tmp_path / "nothing")


def test_a_log_without_layers_is_refused(make_conv: Callable[..., Path]) -> None:
    silent = CompiledEngine(Path("plan"), ("INFO: done",), 1.0, "tensorrt", "10.0")
    with pytest.raises(EngineError, match=r"log of tensorrt 10\.0: got no description of a layer"):
        audit_engine(make_conv(batch=1), silent, BuildOptions(Target(8, 9)), name="m")
