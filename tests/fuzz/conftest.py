"""An exported folder with everything that is read from one, to be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from accuquant._util.files import sha256_of_file
from accuquant.engine_manifest import EngineManifest
from accuquant.export_choice import ExportChoice
from accuquant.groups import StepGroups
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import GroupResult, Recipe

IMAGE = ("batch", 3, "height", "width")
SIGNATURE = Signature(
    "UNet2DModel",
    TensorSpec("sample", IMAGE),
    TensorSpec("timestep", ("steps",), "float32"),
    (TensorSpec("class_labels", ("batch",), "int64"),),
    TensorSpec("out_sample", IMAGE),
    {"batch": 1, "steps": 1, "height": 8, "width": 8},
)
GROUPS = StepGroups((1000, 500, 0))
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": True,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
NETWORK = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "num_class_embeds": 4,
    "block_out_channels": [8, 8],
}
SUMMARY = {"median": 45.5, "mean": 44.0, "minimum": None, "maximum": 60.0}
REPORT = {
    "schema_version": 1,
    "passed": True,
    "checks": [{"name": "psnr", "value": 45.5, "passed": True}],
    "settings": {"num_images": 4, "steps": 10, "engine": "openvino"},
    "fidelity": {"summary": {"psnr": SUMMARY, "ssim": SUMMARY}},
    "fid2fp32": {"extractor": "fashion", "engine": 0.06, "simulated": 0.05},
    "placement": {"int8_mac_share": 0.95, "int8_layers": 3},
    "sizes": {"fp32_weights": 1000, "engine_files": 300},
    "latencies": [{"name": "OpenVINO int8", "median_ms": 3.5}],
}


def make_recipe() -> Recipe:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    layer = LayerQParams(
        "down.conv",
        "conv2d",
        weight.shape,
        fingerprint(weight),
        np.full(4, 0.1, np.float32),
        np.array([0.3, 0.2], np.float32),
        weight_levels=np.zeros((4, 3, 3, 3), np.int8),
        bias_correction=np.zeros(4, np.float32),
    )
    calibration = {
        "settings": {"steps": 10, "seed": 0, "num_trajectories": 4, "observer": "norm"},
        "task": {"prompts": {"count": 1, "sha256": "0" * 64}, "guidance_scale": 7.5, "image_size": [64, 64]},
        "guidance": {"kind": "classifier-free", "scale": 7.5},
        "loras": [{"name": "style.safetensors", "scale": 0.7, "sha256": "0" * 64}],
        "sensitivity": {"down.conv": 0.01},
        "int8_mac_share": 0.9,
        "source": "me/model",
    }
    results = (GroupResult(1.0, 0.5), GroupResult(1.0, float("nan"), "rolled_back", "diverged"))
    return Recipe(GROUPS, {layer.name: layer}, SIGNATURE, dict(SCHEDULER), "0" * 64, calibration, results)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of a pixel pipeline: a graph, configurations, a recipe, an engine, a report."""
    root = tmp_path / "out"
    (root / "unet").mkdir(parents=True)
    (root / "scheduler").mkdir()
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, IMAGE),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["steps"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["batch"]),
    ]
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, IMAGE)
    graph = helper.make_graph(
        [helper.make_node("Add", ["sample", "timestep"], ["out_sample"])], "unet", inputs, [output]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, root / "unet" / "model.onnx")
    (root / "unet" / "config.json").write_text(json.dumps(NETWORK))
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (root / "report.json").write_text(json.dumps(REPORT))
    make_recipe().save(root / RECIPE_NAME)
    names = ("unet/model.onnx", RECIPE_NAME)
    figures = ({"lowering": "rescale", "kernels": 3},)
    digests = {name: sha256_of_file(root / name) for name in names}
    Manifest(
        pipeline_class="DDIMPipeline",
        component="unet",
        lowering="rescale",
        precision="fp32",
        opset=20,
        graphs=("unet/model.onnx",),
        groups=GROUPS,
        signature=SIGNATURE,
        model_hash="0" * 64,
        num_inference_steps=10,
        accuquant_version="0.1.0",
        source="me/model",
        files=digests,
        choice=ExportChoice("sm89", "fp32", "rescale", "rule", "because", figures),
    ).save(root)
    engine = root / "model.engine"
    engine.write_bytes(b"kernels")
    EngineManifest(
        engine_sha256=sha256_of_file(engine),
        engine_bytes=7,
        model_files={"model.onnx": digests["unet/model.onnx"]},
        recipe_sha256="0" * 64,
        library="tensorrt_rtx",
        version="1.7",
        target="sm89",
        options={"target": "sm89", "profile": {"sample": [[1], [1], [1]]}},
        seconds=1.5,
        rebuild="accuquant build OUT --target sm89",
        accuquant_version="0.1.0",
    ).save(engine)
    return root
