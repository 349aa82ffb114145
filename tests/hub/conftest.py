"""An exported folder with a manifest, and a report for its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accuquant._util.files import sha256_of_file
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Signature, TensorSpec

IMAGE = TensorSpec("sample", ("batch", 4, "height", "width"))


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "pipeline_class": "StableDiffusionPipeline",
        "component": "unet",
        "lowering": "rescale",
        "precision": "fp32",
        "opset": 21,
        "graphs": ("unet/model.onnx",),
        "groups": StepGroups((1000, 500, 0)),
        "signature": Signature(
            "UNet2DConditionModel",
            IMAGE,
            TensorSpec("timestep", ("steps",)),
            (),
            TensorSpec("out_sample", IMAGE.shape),
            {"batch": 1, "steps": 1, "height": 64, "width": 64},
        ),
        "model_hash": "0" * 64,
        "num_inference_steps": 50,
        "accuquant_version": "0.1.0",
        "source": "owner/model",
        "files": {"unet/model.onnx": sha256_of_file(folder / "unet" / "model.onnx")},
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_bytes(b"graph")
    manifest_of(folder).save(folder)
    return folder


@pytest.fixture(name="manifest_of")
def manifest_of_fixture() -> Callable[..., Manifest]:
    """Return manifest_of."""
    return manifest_of


@pytest.fixture(name="report")
def report_fixture() -> Callable[..., dict[str, Any]]:
    """Return report."""
    return report


def report(**changes: Any) -> dict[str, Any]:
    numbers = {"median": 45.52, "mean": 43.6, "minimum": 21.4, "maximum": 60.0}
    return {
        "schema_version": 1,
        "passed": True,
        "checks": [],
        "settings": {"num_images": 48, "steps": 50, "engine": "openvino"},
        "fidelity": {"summary": {"psnr": numbers, "ssim": {**numbers, "mean": None}}},
        "fid2fp32": {"extractor": "fashion", "engine": 0.061, "simulated": 0.05},
        "placement": {"int8_mac_share": 0.959},
        "sizes": {"fp32_weights": 10_900_000, "engine_files": 3_800_000},
        "latencies": [{"name": "OpenVINO int8", "median_ms": 35.04}],
        **changes,
    }
