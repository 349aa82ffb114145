"""TensorRT compiles the network of every family, without a GPU, with the calibrated layers in int8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from family_cases import Exported

from accuquant.audit.audit_model import audit_model
from accuquant.engines import Target

#: One case for each network and what it is told; the others have the same graphs.
COMPILED = (
    "sd", "sd-v", "inpaint", "pix2pix", "upscale", "lcm", "sdxl", "sdxl-inpaint", "sdxl-pix2pix", "ldm",
    "ldm-text", "super-resolution", "dit", "pixart", "pixart-alpha", "sd3", "flux", "aura-flow",
    "sana", "chroma", "lumina", "flux-fill", "flux2", "flux2-klein", "qwen", "zimage", "hunyuan-dit",
    "control", "control-sdxl",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.parametrize("kind", COMPILED)
def test_tensorrt_compiles_the_network_with_its_layers_in_int8(
    kind: str, exported_case: Callable[[str], Exported]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    case = exported_case(kind)
    audit = audit_model(case.folder, Target(8, 9), batch_size=2).subject
    assert audit.not_understood == ()
    int8 = {item.layer for item in audit.work if item.precision == "int8"}
    assert len(int8) >= len(case.recipe.layers) // 2
    assert audit.outcomes["float"] == 0
