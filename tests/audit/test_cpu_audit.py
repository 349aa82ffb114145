"""What OpenVINO and ONNX Runtime run here; which layers that are in int8 is the processor's affair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accuquant.audit.audit_model import AuditReport
from accuquant.audit.cpu_audit import audit_on_cpu, feeds_of
from accuquant.audit.engine_audit import EngineAudit
from accuquant.cli.main import main
from accuquant.errors import SourceError
from accuquant.graph.calibrated import calibrated_layers
from accuquant.networks.network import count_macs
from accuquant.runtime.openvino_runner import OpenVinoRunner

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def model(export_tiny: Export) -> Path:
    return export_tiny(scales="grouped", zero_point=-100, precision="fp32")


@pytest.fixture(scope="module")
def report(model: Path) -> AuditReport:
    return audit_on_cpu(model, num_threads=1, rounds=2)


def check_whole(audit: EngineAudit, source: Any) -> None:
    """Every product is found, and the work is what torch counts and QK^T and PV: 64 tokens of 32 channels."""
    assert audit.macs == sum(count_macs(source.network, source.signature).values()) + 2 * 64 * 64 * 32
    assert [text for text in audit.not_understood if "no shape" in text or "no layer" in text] == []
    assert sum(audit.share(name) for name in {item.precision for item in audit.work}) == pytest.approx(1)
    times = [kernel.milliseconds for kernel in audit.kernel_list]
    assert audit.milliseconds is not None
    assert None not in times
    assert sum(audit.kind_milliseconds.values()) == pytest.approx(sum(time or 0.0 for time in times))


def test_the_work_in_int8_is_what_the_runner_says(
    report: AuditReport, model: Path, audit_source: Any
) -> None:
    """The audit counts from the graph's shapes, the runner from those of the compiled model."""
    check_whole(report.subject, audit_source)
    with OpenVinoRunner(model, num_threads=1) as runner:
        runner.infer(feeds_of(runner, {}))
        use = runner.int8_use
    assert use is not None
    assert use.unknown == ()
    assert {run.layer: run.precision for run in use.runs} == {
        item.layer: item.precision
        for item in report.subject.work
        if item.layer in {run.layer for run in use.runs}
    }
    in_int8 = sum(run.macs for run in use.runs if run.precision == "int8")
    assert report.subject.share("int8") * report.subject.macs == pytest.approx(in_int8)
    assert {pair.layer for pair in report.subject.pairs if pair.outcome == "float"} == {
        run.layer for run in use.in_float
    }


def test_the_float_network_beside_it_has_the_same_work_and_no_int8(
    report: AuditReport, audit_source: Any
) -> None:
    assert report.reference is not None
    check_whole(report.reference, audit_source)
    assert report.reference.macs == report.subject.macs
    assert {item.precision for item in report.reference.work} <= {"fp32", "bf16", "fp16"}
    assert report.reference.pairs == ()


@pytest.mark.usefixtures("in_float")
def test_pairs_that_stay_in_float_are_named_with_kernel_and_remedy(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page = tmp_path / "audit.json", tmp_path / "audit.html"
    arguments = ["--engine", "openvino", "--threads", "1", "--json", str(data), "--html", str(page)]
    assert main(["audit", str(model), *arguments, "--layers"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    facts = json.loads(data.read_text())["subject"]
    assert facts["mac_share"].get("int8", 0.0) == 0.0
    assert facts["mac_share"]["fp32"] > 0.9
    assert {pair["layer"] for pair in facts["pairs"]} == {
        layer.layer for layer in calibrated_layers(model, error=SourceError)
    }
    outcomes = {pair["layer"]: pair["outcome"] for pair in facts["pairs"]}
    assert {outcomes[name] for name in outcomes if name.endswith(("conv1", "conv2"))} == {"float"}
    assert set(outcomes.values()) <= {"float", "unknown"}
    for pair in facts["pairs"]:
        assert pair["outcome"] == "unknown" or "which reads Float" in pair["reason"]
        assert pair["remedy"]
    assert "time in convolution" in printed
    assert "in float" in printed
    text = page.read_text()
    assert text.count("<svg") == 5
    assert "Where the time goes" in text
    assert "http" not in text


def test_a_zero_point_inside_a_pair_is_the_reason_where_the_layer_runs_in_float(
    export_tiny: Export, in_float: None
) -> None:
    path = export_tiny(zero_point=-100, precision="fp32", affine="zero_point")
    audit = audit_on_cpu(path, against=None, num_threads=1, rounds=1).subject
    shifted = [pair for pair in audit.pairs if "zero-point inside" in pair.reason]
    assert {pair.layer.rpartition(".")[2] for pair in shifted} == {"conv1", "conv2"}
    assert {pair.remedy for pair in shifted} == {"Export with --affine shift, or calibrate with --symmetric"}


def test_onnxruntime_says_it_by_its_operators(model: Path) -> None:
    report = audit_on_cpu(model, "onnxruntime", num_threads=1, rounds=2)
    layers = {layer.layer for layer in calibrated_layers(model, error=SourceError)}
    assert layers <= {item.layer for item in report.subject.work if item.precision in ("int8", "fp32")}
    operators = {item.layer: item.kernel for item in report.subject.work if item.precision == "int8"}
    assert set(operators) <= layers
    int8 = {kernel.implementation for kernel in report.subject.kernel_list if kernel.precision == "int8"}
    assert bool(operators) == bool(int8 & {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm"})
    assert report.reference is not None
    assert report.reference.share("int8") == 0


@pytest.mark.parametrize(
    "arguments",
    [["--engine", "openvino", "--target", "sm86"], ["--engine", "onnxruntime", "--backend", "tensorrt"]],
)
def test_an_option_of_another_engine_is_refused(
    arguments: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(model), *arguments]) == 2
    assert "an option of another engine" in " ".join(capsys.readouterr().err.split())
    assert main(["audit", str(model), "--threads", "2"]) == 2


def test_inputs_are_noise_and_their_types_the_graphs() -> None:
    from types import SimpleNamespace

    from accuquant.networks.signature import TensorSpec

    specs = (
        TensorSpec("sample", ("batch", 3, 8, 8)),
        TensorSpec("timestep", (1,)),
        TensorSpec("labels", ("batch",), "int64"),
    )
    runner = SimpleNamespace(input_specs=specs)
    feeds = feeds_of(runner, {"sample": (2, 3, 8, 8), "labels": (2,)})
    assert [(array.shape, str(array.dtype)) for array in feeds.values()] == [
        ((2, 3, 8, 8), "float32"),
        ((1,), "float32"),
        ((2,), "int64"),
    ]
    assert np.std(feeds["sample"]) > 0.5
    assert np.all(feeds["labels"] == 0)
