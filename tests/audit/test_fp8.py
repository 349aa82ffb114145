"""FP8 engines that are really compiled, and the verdict on two formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from accuquant.audit.audit_model import audit_model
from accuquant.audit.engine_audit import EngineAudit, Kernel, NodeWork
from accuquant.audit.engine_layers import EngineLayer, EngineTensor
from accuquant.audit.kernel_kind import kernel_kind
from accuquant.audit.verdict import Verdict
from accuquant.engines import parse_target
from accuquant.errors import EngineError
from accuquant.qparams import LayerQParams


def as_fp8(layer: LayerQParams) -> LayerQParams:
    return dataclasses.replace(
        layer,
        format="fp8",
        zero_point=0,
        weight_scale=layer.weight_scale * np.float32(127 / 448),
        activation_scale=layer.activation_scale * np.float32(127 / 448),
    )


@pytest.fixture(scope="module")
def model(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(change=as_fp8)


def layer(name: str, kind: str, reads: tuple[str, ...], *writes: str) -> EngineLayer:
    def tensors(types: tuple[str, ...]) -> tuple[EngineTensor, ...]:
        return tuple(EngineTensor(f"t{i}", (1, 8), dtype) for i, dtype in enumerate(types))

    return EngineLayer(name, kind, tensors(reads), (), tensors(writes), ("a",))


@pytest.mark.parametrize(
    ("one", "levels"),
    [
        (layer("conv_myl0_1", "correlation", ("FP8",), "Half"), "FP8"),
        (layer("conv_myl0_1", "correlation", ("FP8", "Half"), "Half"), "FP8"),
        (layer("_gemm_mha_v2_myl0_3", "kgen", ("FP8", "FP8", "FP8"), "Half"), "FP8"),
        # the product of levels with a float operand casts the levels
        (layer("__myl_CastMulFc_myl0_5", "runtime_fusion", ("FP8", "Half"), "Half"), None),
        (layer("conv_myl0_1", "correlation", ("Half",), "Half"), None),
        (layer("conv_myl0_1", "correlation", ("Int8", "Half"), "Half"), "Int8"),
    ],
)
def test_a_layer_computes_with_the_levels_that_it_reads(one: EngineLayer, levels: str | None) -> None:
    assert one.levels_type == levels


def test_kernels_of_fp8_are_told_apart() -> None:
    quantizes = {"a": "QuantizeLinear"}
    alone = layer("__myl_MulCast_myl0_0", "kgen", ("Half",), "FP8")
    assert kernel_kind(alone, quantizes) == "quantize"
    assert kernel_kind(layer("__myl_MulCast_myl0_0", "kgen", ("Half",), "Float"), quantizes) != "quantize"
    assert kernel_kind(layer("__myl_SiluMulCast_myl0_0", "kgen", ("Half",), "FP8"), quantizes) != "quantize"
    assert kernel_kind(layer("_gemm_mha_v2_myl0_3", "kgen", ("FP8",), "Half"), {}) == "attention"


def audit(name: str, precision: str, kernels: int, traffic: float) -> EngineAudit:
    one = Kernel("k", "convolution", precision, (), (), (), traffic / kernels)
    work = (NodeWork("n", "n", "Conv", 10, precision, "k", False),)
    return EngineAudit(name, "sm89", "", 0.0, 1, {}, None, (one,) * kernels, work, (), ())


def test_the_verdict_weighs_products_kernels_and_traffic() -> None:
    half, fp8 = audit("fp16", "fp16", 100, 10.0), audit("fp8", "fp8", 110, 8.0)
    verdict = Verdict.of(fp8, half)
    assert verdict.saving == pytest.approx(1 - (0.5 + 1.1 + 0.8) / 3)
    assert verdict.preferred == "fp8"
    assert Verdict.of(half, fp8).preferred == "fp8"
    assert "fp8 should be faster on sm89" in str(verdict)
    assert "nothing was timed" in str(verdict)
    alike = Verdict.of(fp8, audit("int8", "int8", 108, 8.1))
    assert alike.preferred is None
    assert "take the one whose images are closer" in str(alike)
    worse = Verdict.of(audit("int8", "int8", 300, 12.0), half)
    assert worse.preferred == "fp16"


@pytest.mark.trt
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_every_layer_runs_in_fp8_from_ada_on(model: Path, target: str) -> None:
    report = audit_model(model, parse_target(target), against="fp16")
    found = report.subject
    assert found.not_understood == ()
    assert found.quantized == "fp8"
    assert found.share("fp8") + found.share("fp16") == pytest.approx(1)
    assert found.share("fp8") > 0.5
    assert found.outcomes["float"] == found.outcomes["unknown"] == 0
    assert found.weight_bytes["fp8"] > 0
    assert report.verdict is not None
    assert report.verdict.work == pytest.approx(1 - found.share("fp8") / 2)


@pytest.mark.trt
@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86"])
def test_older_gpus_are_refused_by_name(model: Path, target: str) -> None:
    with pytest.raises(
        EngineError, match=rf"FP8, which {target} .*Calibrate with --format int8 for {target}"
    ):
        audit_model(model, parse_target(target))
