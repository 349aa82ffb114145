"""Tiny exported folders with a closed-form network, so that no test here needs the exporter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant._util.files import sha256_of_file
from accuquant.engine_manifest import EngineManifest
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Signature, TensorSpec

GROUPS = StepGroups((1000.0, 500.0, 0.0))
DDIM = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.30.0", "num_train_timesteps": 1000}
UNET = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3}


def closed_form(sample: np.ndarray, timestep: float, gain: float = 0.5, labels: Any = None) -> np.ndarray:
    """What every graph here computes: gain tanh(sample) + timestep / 1000 + label."""
    shift = 0 if labels is None else np.asarray(labels, np.float32)[:, None, None, None]
    return (gain * np.tanh(sample) + np.float32(timestep) / np.float32(1000) + shift).astype(np.float32)


def make_model(
    *, gain: float = 0.5, batch: int | str = "batch", timestep: str = "int64", labels: bool = False
) -> onnx.ModelProto:
    """Build the closed form as a graph: sample [batch, 3, height, width], timestep [steps]."""
    image = [batch, 3, "height", "width"]
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, image),
        helper.make_tensor_value_info("timestep", kinds[timestep], ["steps"]),
    ]
    nodes = [
        helper.make_node("Tanh", ["sample"], ["curve"]),
        helper.make_node("Mul", ["curve", "gain"], ["scaled"]),
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["time", "thousand"], ["shift"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted" if labels else "out_sample"]),
    ]
    if labels:
        inputs.append(helper.make_tensor_value_info("class_labels", TensorProto.INT64, [batch]))
        nodes += [
            helper.make_node("Cast", ["class_labels"], ["label"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["label", "column"], ["labels"]),
            helper.make_node("Add", ["shifted", "labels"], ["out_sample"]),
        ]
    constants = [
        numpy_helper.from_array(np.full((3, 1, 1), gain, np.float32), "gain"),
        numpy_helper.from_array(np.array([1000], np.float32), "thousand"),
        numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "column"),
    ]
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)
    graph = helper.make_graph(nodes, "unet", inputs, [output], constants[: 3 if labels else 2])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A .onnx file of the closed form with a dynamic batch."""
    path = tmp_path / "model.onnx"
    onnx.save(make_model(), path)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an exported folder and returns its path."""

    def make(
        *,
        lowering: str = "rescale",
        scheduler: dict[str, Any] = DDIM,
        pipeline: str = "DDIMPipeline",
        unet: dict[str, Any] = UNET,
        gains: tuple[float, ...] = (0.5, 0.25),
        **model: Any,
    ) -> Path:
        folder = tmp_path / "exported"
        (folder / "unet").mkdir(parents=True)
        (folder / "scheduler").mkdir()
        (folder / "unet" / "config.json").write_text(json.dumps(unet))
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        names = ["unet/model.onnx"]
        if lowering == "per-group":
            names = [f"unet/group_{index:02d}.onnx" for index in range(len(gains))]
        for name, gain in zip(names, gains, strict=False):
            onnx.save(make_model(gain=gain, **model), folder / name)
        labels = (TensorSpec("class_labels", ("batch",), "int64"),) if model.get("labels") else ()
        manifest(folder, lowering, pipeline, names, unet["_class_name"], labels).save(folder)
        return folder

    return make


def manifest(
    folder: Path,
    lowering: str,
    pipeline: str,
    graphs: list[str],
    architecture: str,
    conditioning: tuple[TensorSpec, ...] = (),
) -> Manifest:
    """Describe the graphs in `folder`."""
    image = ("batch", 3, "height", "width")
    return Manifest(
        pipeline_class=pipeline,
        component="unet",
        lowering=lowering,
        precision="fp32",
        opset=20,
        graphs=tuple(graphs),
        groups=GROUPS,
        signature=Signature(
            architecture=architecture,
            sample=TensorSpec("sample", image),
            timestep=TensorSpec("timestep", ("steps",), "int64"),
            conditioning=conditioning,
            output=TensorSpec("out_sample", image),
            sizes={"batch": 1, "steps": 1, "height": 8, "width": 8},
        ),
        model_hash="0",
        num_inference_steps=10,
        accuquant_version="0.1.0",
        files={graph: sha256_of_file(folder / graph) for graph in graphs},
    )


@pytest.fixture
def network() -> Callable[..., np.ndarray]:
    """The closed form in numpy: the oracle for every graph here."""
    return closed_form


@pytest.fixture
def build_model() -> Callable[..., onnx.ModelProto]:
    """Return make_model."""
    return make_model


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The file of an engine for sm89, as far as its manifest knows: nothing compiled it."""
    path = tmp_path / "conv.engine"
    path.write_bytes(b"kernels")
    EngineManifest(
        engine_sha256=sha256_of_file(path),
        engine_bytes=7,
        model_files={"conv.onnx": "0" * 64},
        recipe_sha256="",
        library="tensorrt_rtx",
        version="1.7.1",
        target="sm89",
        options={},
        seconds=1.0,
        rebuild="accuquant build conv.onnx --target sm89",
        accuquant_version="0",
    ).save(path)
    return path


@pytest.fixture(name="manifest")
def manifest_of_engine(engine: Path) -> EngineManifest:
    """The manifest of `engine`."""
    return EngineManifest.load(engine)


@pytest.fixture
def compiled_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A processor that says it has bfloat16 -> what precision each model was compiled in, in turn.

    Where the real one has none, OpenVINO takes the property and goes on in float32.
    """
    import openvino

    precisions: list[str] = []
    compile_model, get_property = openvino.Core.compile_model, openvino.Core.get_property

    def compile_noted(core: Any, model: Any, device: str, properties: dict[str, Any]) -> Any:
        precisions.append(properties["INFERENCE_PRECISION_HINT"])
        return compile_model(core, model, device, properties)

    def get(core: Any, device: str, name: str) -> Any:
        found = get_property(core, device, name)
        return [*found, "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(openvino.Core, "compile_model", compile_noted)
    monkeypatch.setattr(openvino.Core, "get_property", get)
    return precisions
