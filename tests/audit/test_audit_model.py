"""Audits of engines that are really compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from accuquant.audit.audit_model import audit_model, write_float_twin
from accuquant.audit.engine_audit import EngineAudit, audit_engine
from accuquant.audit.engine_layers import read_engine_layers
from accuquant.cli.main import main
from accuquant.engines import BuildOptions, CompiledEngine, Target, compile_engine, parse_target
from accuquant.errors import SourceError

pytestmark = pytest.mark.trt
Export = Callable[..., Path]
ADA = Target(8, 9)


LAYER = "up_blocks.0.resnets.0.conv2"


def reasons(audit: EngineAudit) -> list[tuple[str, str]]:
    return [(pair.outcome, pair.reason) for pair in audit.pairs if pair.layer == LAYER]


@pytest.fixture(scope="module")
def model(export_tiny: Export) -> Path:
    return export_tiny()


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> CompiledEngine:
    return compile_engine(model, tmp_path_factory.mktemp("engine") / "plan", BuildOptions(ADA))


@pytest.fixture(scope="module")
def plain(model: Path, engine: CompiledEngine) -> EngineAudit:
    return audit_engine(model, engine, BuildOptions(ADA), name="plain")


def test_every_layer_that_the_compiler_describes_is_read(engine: CompiledEngine) -> None:
    described = [line for line in engine.log if line.startswith("Name: ") and "LayerType" in line]
    description = read_engine_layers(engine.log)
    assert len(described) > 50
    assert len(description.layers) == len(described)
    assert description.not_understood == ()


def test_the_constants_add_up_to_what_the_compiler_says_it_stores(engine: CompiledEngine) -> None:
    description = read_engine_layers(engine.log)
    constants = {tensor.name: tensor for layer in description.layers for tensor in layer.constants}
    stored = sum(tensor.num_bytes for tensor in constants.values())
    assert description.weight_bytes == pytest.approx(stored, rel=0.02)


def test_constant_scales_fuse_and_run_in_int8(plain: EngineAudit, model: Path) -> None:
    assert plain.not_understood == ()
    precisions = {item.layer: item.precision for item in plain.work}
    layers = {entry.value for node in onnx.load(model).graph.node for entry in node.metadata_props}
    assert {precisions[layer] for layer in layers if layer in precisions} == {"int8"}
    assert precisions["node_conv2d"] == "fp16", "the first convolution stays float"
    assert plain.share("int8") + plain.share("fp16") + plain.share("fp32") == pytest.approx(1)
    assert reasons(plain) == [("fused", "")]
    assert plain.outcomes["float"] == plain.outcomes["unknown"] == 0


def test_a_shortcut_behind_a_concatenation_has_a_pair_on_each_part(export_tiny: Export) -> None:
    """What a layer reads that concatenates two tensors is quantized where each of them is computed."""
    layer = "up_blocks.0.resnets.0.conv_shortcut"
    audit = audit_model(export_tiny(include=("*conv_shortcut",)), ADA).subject
    assert {item.precision for item in audit.work if item.layer == layer} == {"int8"}
    pairs = [pair for pair in audit.pairs if pair.layer == layer]
    assert len(pairs) == 2
    assert "part0" in pairs[0].pair
    assert audit.outcomes["float"] == audit.outcomes["unknown"] == 0


@pytest.mark.parametrize("target", ["sm86", "sm120"])
def test_other_gpus_run_the_same_layers_in_int8(plain: EngineAudit, model: Path, target: str) -> None:
    other = audit_model(model, parse_target(target)).subject
    assert other.not_understood == ()
    assert {item.layer: item.precision for item in other.work} == {
        item.layer: item.precision for item in plain.work
    }


def test_int8_convolutions_finish_in_half_precision(engine: CompiledEngine) -> None:
    """One weight scale for all channels lets the convolution's own kernel write half, not float32 sums."""
    layers = read_engine_layers(engine.log).layers
    convolutions = [layer for layer in layers if layer.kind == "correlation" and layer.reads_levels]
    assert convolutions
    assert {tensor.dtype for layer in convolutions for tensor in layer.outputs} == {"Half"}


def test_a_pair_whose_weight_is_float_is_named_with_a_remedy(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    dequantize = next(node for node in proto.graph.node if node.name == f"{LAYER}/weight/DequantizeLinear")
    levels = next(t for t in proto.graph.initializer if t.name == dequantize.input[0])
    weight = onnx.numpy_helper.to_array(levels).astype(np.float16)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "float_weight"))
    (reader,) = [node for node in proto.graph.node if dequantize.output[0] in node.input]
    reader.input[1] = "float_weight"
    proto.graph.node.remove(dequantize)
    onnx.save(proto, tmp_path / "half.onnx")
    audit = audit_model(tmp_path / "half.onnx", ADA).subject
    (pair,) = [pair for pair in audit.pairs if pair.layer == LAYER]
    assert (pair.outcome, pair.reason) == ("float", "its weight is not quantized")
    assert pair.remedy


def test_a_step_factor_splits_the_fusion_and_the_command_says_so(
    export_tiny: Export, plain: EngineAudit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grouped = export_tiny(scales="grouped", zero_point=-100)
    data, page = tmp_path / "audit.json", tmp_path / "audit.html"
    assert main(["audit", str(grouped), "--json", str(data), "--html", str(page), "--layers"]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(data.read_text())
    subject, reference = facts["subject"], facts["reference"]
    (pair,) = [pair for pair in subject["pairs"] if pair["layer"] == LAYER]
    assert pair["outcome"] == "split"
    assert "step group's factor" in pair["reason"]
    assert subject["num_kernels"] > plain.num_kernels
    assert subject["mac_share"]["int8"] == plain.share("int8")
    assert reference["mac_share"] == {"fp16": 1.0}
    assert reference["macs"] == subject["macs"]
    assert f"{100 * subject['mac_share']['int8']:.1f} %" in printed
    assert pair["reason"] in printed
    assert subject["kernel_list"][-1]["name"] in printed
    text = page.read_text()
    assert text.count("<svg") == 4
    assert pair["reason"].replace("'", "&#39;") in text
    assert "http" not in text


def test_bfloat16_costs_no_kernel_more_than_float16(export_tiny: Export) -> None:
    options = {"scales": "grouped", "zero_point": -100}
    half = audit_model(export_tiny(precision="fp16", **options), ADA).subject
    brain = audit_model(export_tiny(precision="bf16", **options), ADA).subject
    assert brain.share("int8") == half.share("int8")
    assert brain.share("bf16") + brain.share("fp32") == pytest.approx(half.share("fp16") + half.share("fp32"))
    assert brain.share("bf16") > 0
    assert brain.num_kernels <= half.num_kernels + 2
    assert len(brain.pairs) == len(half.pairs)


def test_a_bfloat16_graph_has_a_float16_twin(export_tiny: Export, tmp_path: Path) -> None:
    path = write_float_twin(export_tiny(precision="bf16", scales="grouped", zero_point=-100), tmp_path)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.BFLOAT16 not in kinds
    twin = audit_model(path, ADA).subject
    assert twin.share("fp16") == 1


def test_a_graph_of_ours_without_roles_is_refused(
    model: Path, engine: CompiledEngine, tmp_path: Path
) -> None:
    """An earlier version wrote it: what its nodes are for would be a guess."""
    proto = onnx.load(model)
    for node in proto.graph.node:
        node.ClearField("metadata_props")
    onnx.save(proto, tmp_path / "old.onnx")
    with pytest.raises(SourceError, match=r"no role .*Export the model again"):
        audit_engine(tmp_path / "old.onnx", engine, BuildOptions(ADA), name="old")
