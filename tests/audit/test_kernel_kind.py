from __future__ import annotations

import pytest

from accuquant.audit.engine_layers import EngineLayer, EngineTensor
from accuquant.audit.kernel_kind import kernel_kind

TENSOR = EngineTensor("x", (1, 4), "Half")
OPERATORS = {"q": "QuantizeLinear", "norm": "GroupNormalization", "pad": "Pad"}


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "expected"),
    [
        ("node_conv2d_myl0_5", "correlation", ("node_conv2d",), "convolution"),
        ("__myl_CorrAdd_myl0_5", "runtime_fusion", ("node_conv2d", "node_add"), "convolution"),
        ("__myl_FcAddSilu_myl0_2", "runtime_fusion", ("node_linear",), "gemm"),
        ("node_linear_3+node_linear_2_myl0_3", "gemm", (), "gemm"),
        ("__myl_SiluMulMinMaxRounCastGnor_myl0_19", "kgen", ("norm", "q"), "fused pointwise"),
        ("__myl_MoveMulMinMaxRounCast_myl0_22", "kgen", ("q",), "quantize"),
        ("__myl_GathReshDivMulMinMaxRounCast_myl0_22", "kgen", ("q",), "quantize"),
        ("__myl_CastConcConc_myl0_18", "kgen", ("q", "pad"), "reformat"),
        ("__myl_Conc_myl0_285", "runtime_function", (), "reformat"),
        ("__myl_Inor_myl0_285", "runtime_function", ("norm",), "fused pointwise"),
        ("__mye113487_myl0_3", "signal", (), "sync"),
        ("something_new", "teleport", (), "other"),
    ],
)
def test_a_kernel_has_the_kind_that_its_name_says(
    name: str, kind: str, nodes: tuple[str, ...], expected: str
) -> None:
    assert kernel_kind(EngineLayer(name, kind, (TENSOR,), (), (TENSOR,), nodes), OPERATORS) == expected


def test_a_kernel_without_inputs_fills() -> None:
    assert kernel_kind(EngineLayer("__myl_Move_myl0_6", "kgen", (), (), (TENSOR,), ()), {}) == "fill"
