"""A Triton repository: its configuration parses, and its models are the exported graphs."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper

from accuquant._util.files import sha256_of_file
from accuquant.errors import EngineError, ExportError, UsageError
from accuquant.export.write.triton_repository import write_triton_repository
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Signature, TensorSpec

SAMPLE = TensorSpec("sample", ("batch", 4, "height", "width"))


def save_graph(path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 4, "height", "width"]),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["steps"]),
    ]
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["batch", 4, "height", "width"])
    weight = onnx.numpy_helper.from_array(np.full((4, 1, 1), 2, np.float32), "w")
    nodes = [
        helper.make_node("Mul", ["sample", "w"], ["x"]),
        helper.make_node("Add", ["x", "timestep"], ["out_sample"]),
    ]
    graph = helper.make_graph(nodes, "unet", inputs, [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)


@pytest.fixture(params=[1, 2])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An exported folder with one graph, or one for each of two step groups."""
    folder = tmp_path / "out"
    (folder / "unet").mkdir(parents=True)
    names = ["model.onnx"] if request.param == 1 else ["group_00.onnx", "group_01.onnx"]
    for name in names:
        (folder / "unet" / "model.onnx_data").unlink(missing_ok=True)
        save_graph(folder / "unet" / name)
    files = {f"unet/{name}": sha256_of_file(folder / "unet" / name) for name in names}
    Manifest(
        pipeline_class="StableDiffusionPipeline",
        component="unet",
        lowering="rescale" if request.param == 1 else "per-group",
        precision="fp32",
        opset=21,
        graphs=tuple(files),
        groups=StepGroups((1000, 500, 0)),
        signature=Signature(
            "UNet2DConditionModel",
            SAMPLE,
            TensorSpec("timestep", ("steps",)),
            (),
            SAMPLE,
            {"batch": 1, "height": 8, "width": 8},
        ),
        model_hash="ab" * 32,
        num_inference_steps=50,
        accuquant_version="0.1.0",
        files=files,
    ).save(folder)
    return folder


def model_config_class() -> Any:
    """The fields of Triton's ModelConfig that are written here, with the numbers and types of its .proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="inference", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        made = file.message_type.add(name=name)
        for label, number, kind, repeated, type_name in fields:
            made.field.add(
                name=label,
                number=number,
                type=kind,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type_name=f".inference.{type_name}" if type_name else None,
            )
        return made

    text, integer = field.TYPE_STRING, field.TYPE_INT32
    types = file.enum_type.add(name="DataType")
    for name, number in (
        ("TYPE_INVALID", 0),
        ("TYPE_INT32", 8),
        ("TYPE_INT64", 9),
        ("TYPE_FP16", 10),
        ("TYPE_FP32", 11),
    ):
        types.value.add(name=name, number=number)
    kinds = file.enum_type.add(name="Kind")
    for name, number in (("KIND_AUTO", 0), ("KIND_GPU", 1), ("KIND_CPU", 2)):
        kinds.value.add(name=name, number=number)
    tensor = (("name", 1, text, False, ""), ("data_type", 2, field.TYPE_ENUM, False, "DataType"))
    message("ModelInput", *tensor, ("dims", 4, field.TYPE_INT64, True, ""))
    message("ModelOutput", *tensor, ("dims", 3, field.TYPE_INT64, True, ""))
    message(
        "ModelInstanceGroup", ("count", 2, integer, False, ""), ("kind", 4, field.TYPE_ENUM, False, "Kind")
    )
    message("ModelParameter", ("string_value", 1, text, False, ""))
    whole, one = field.TYPE_MESSAGE, False
    config = message(
        "ModelConfig",
        ("name", 1, text, one, ""),
        ("max_batch_size", 4, integer, one, ""),
        ("input", 5, whole, True, "ModelInput"),
        ("output", 6, whole, True, "ModelOutput"),
        ("instance_group", 7, whole, True, "ModelInstanceGroup"),
        ("default_model_filename", 8, text, one, ""),
        ("parameters", 14, whole, True, "ModelConfig.ParametersEntry"),
        ("backend", 17, text, one, ""),
    )
    entry = config.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=text, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=whole, label=field.LABEL_OPTIONAL, type_name=".inference.ModelParameter"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_class()())


def test_each_graph_becomes_a_model_of_each_backend(export: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    models = write_triton_repository(export, repository, name="sd")
    assert sorted(models) == sorted(path.name for path in repository.iterdir())
    graphs = Manifest.load(export).graphs
    assert len(models) == 3 * len(graphs)
    for model in models:
        config = parse(repository / model / "config.pbtxt")
        assert config.name == model
        assert config.backend == model.rsplit("-", 1)[1]
        assert config.max_batch_size == 0
        assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
            ("sample", 11, [-1, 4, -1, -1]),
            ("timestep", 11, [-1]),
        ]
        assert [(t.name, list(t.dims)) for t in config.output] == [("out_sample", [-1, 4, -1, -1])]
        version = repository / model / "1"
        gpu = config.backend == "tensorrt"
        assert config.instance_group[0].kind == (1 if gpu else 2)
        assert (version / config.default_model_filename).is_file() != gpu
        if gpu:
            assert "accuquant build" in (version / "README.txt").read_text()
            continue
        session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
        feeds = {"sample": np.ones((1, 4, 2, 2), np.float32), "timestep": np.array([3], np.float32)}
        assert np.all(session.run(None, feeds)[0] == 5)


def test_a_model_of_one_step_group_says_which_timesteps_are_its_own(export: Path, tmp_path: Path) -> None:
    models = write_triton_repository(export, tmp_path / "repository", backends=["onnxruntime"])
    found = [
        parse(tmp_path / "repository" / model / "config.pbtxt").parameters["accuquant.timesteps"].string_value
        for model in models
    ]
    if len(models) == 1:
        assert found == ["0 <= timestep <= 1000"]
        assert models == ["unet-onnxruntime"]
    else:
        assert found == ["500 <= timestep <= 1000", "0 <= timestep < 500"]
        assert models == ["unet-group-00-onnxruntime", "unet-group-01-onnxruntime"]


def test_timesteps_have_the_unit_of_the_input(export: Path, tmp_path: Path) -> None:
    """Flux takes them from 0 to 1; step groups are keyed by the scheduler's."""
    manifest = Manifest.load(export)
    replace(manifest, signature=replace(manifest.signature, timestep_divisor=1000.0)).save(export)
    models = write_triton_repository(export, tmp_path / "repository", backends=["onnxruntime"])
    text = parse(tmp_path / "repository" / models[-1] / "config.pbtxt").parameters["accuquant.timesteps"]
    assert text.string_value == ("0 <= timestep <= 1" if len(models) == 1 else "0 <= timestep < 0.5")


def test_nothing_is_overwritten_and_nothing_half_written(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(ExportError, match="nothing was overwritten"):
        write_triton_repository(export, other)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accuquant.export.write.triton_repository.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        write_triton_repository(export, tmp_path / "repository")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_backend_without_bfloat16_is_left_out_and_refused_by_name(export: Path, tmp_path: Path) -> None:
    dataclasses.replace(Manifest.load(export), precision="bf16").save(export)
    models = write_triton_repository(export, tmp_path / "repository")
    assert {model.rpartition("-")[2] for model in models} == {"tensorrt", "openvino"}
    with pytest.raises(ExportError, match="backend onnxruntime: got an export in bf16"):
        write_triton_repository(export, tmp_path / "other", backends=["openvino", "onnxruntime"])


def test_refuses_an_unknown_backend_and_a_changed_graph(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt or openvino or onnxruntime"):
        write_triton_repository(export, tmp_path / "r", backends=["tflite"])
    (export / Manifest.load(export).graphs[0]).write_bytes(b"other")
    with pytest.raises(EngineError, match="other bytes"):
        write_triton_repository(export, tmp_path / "r")
