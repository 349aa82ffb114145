"""The manifest of an exported folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from accuquant._util.files import sha256_of_file
from accuquant.errors import EngineError, UsageError
from accuquant.export_choice import ExportChoice
from accuquant.groups import StepGroups
from accuquant.manifest import MANIFEST_NAME, Manifest
from accuquant.networks.signature import Signature, TensorSpec

IMAGE = ("batch", 1, "height", "width")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"graph")
    return Manifest(
        pipeline_class="DDPMPipeline",
        component="unet",
        lowering="per-group",
        precision="fp32",
        opset=21,
        graphs=("unet/model.onnx",),
        groups=StepGroups((1000, 450, 0)),
        signature=Signature(
            "UNet2DModel",
            TensorSpec("sample", IMAGE),
            TensorSpec("timestep", ("steps",), "int64"),
            (),
            TensorSpec("out_sample", IMAGE),
            {"batch": 1, "steps": 1, "height": 8, "width": 8},
        ),
        model_hash="ab" * 32,
        num_inference_steps=50,
        accuquant_version="0.1.0",
        source="fashion",
        files={"unet/model.onnx": sha256_of_file(tmp_path / "unet" / "model.onnx")},
    )


def test_save_load_gives_the_same(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    Manifest.load(tmp_path).save(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


def test_a_choice_is_kept_with_its_figures(manifest: Manifest, tmp_path: Path) -> None:
    figures = ({"lowering": "rescale", "kernels": 181}, {"lowering": "hybrid", "kernels": 172})
    choice = ExportChoice("sm89", "fp16", "hybrid", "audit", "172 kernels", figures)
    chosen = dataclasses.replace(manifest, choice=choice)
    chosen.save(tmp_path)
    assert Manifest.load(tmp_path) == chosen
    assert str(choice).splitlines()[0] == "Chosen for sm89: --precision fp16 --lowering hybrid"


def test_a_manifest_from_before_there_was_a_choice_loads(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text())
    del data["choice"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    assert Manifest.load(tmp_path) == manifest


def test_a_folder_without_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no accuquant.json.*export the pipeline first"):
        Manifest.load(tmp_path)
    with pytest.raises(EngineError, match=r"no accuquant.json"):
        Manifest.load(tmp_path / "missing")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', '{"format_version": 1}', "\udcff"])
def test_a_damaged_manifest_is_an_engine_error(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EngineError, match=r"The file is damaged. Run `accuquant export` again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("groups", [0, 1]),
        ("groups", None),
        ("graphs", 3),
        ("signature", []),
        ("signature", {"sizes": []}),
        ("choice", {"target": "sm89"}),
        ("choice", [1]),
    ],
)
def test_a_damaged_field_is_an_engine_error(
    manifest: Manifest, tmp_path: Path, key: str, value: object
) -> None:
    manifest.save(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text()) | {key: value}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(EngineError, match=r"Run `accuquant export` again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("version", [0, 2, None])
def test_refuses_another_format_version(manifest: Manifest, tmp_path: Path, version: object) -> None:
    manifest.save(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text()) | {"format_version": version}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(EngineError, match=r"format version .* expected version 1"):
        Manifest.load(tmp_path)


def test_accepts_the_files_that_were_exported(manifest: Manifest, tmp_path: Path) -> None:
    manifest.check_files(tmp_path)


def test_refuses_a_file_with_other_bytes(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "unet" / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(EngineError, match=r"model.onnx': got other bytes than were exported"):
        manifest.check_files(tmp_path)


def test_refuses_a_folder_where_a_file_is_missing(manifest: Manifest, tmp_path: Path) -> None:
    wanted = dataclasses.replace(manifest, files={**manifest.files, "unet/model.onnx.data": "0" * 64})
    with pytest.raises(EngineError, match=r"model.onnx.data': got no such file"):
        wanted.check_files(tmp_path)


def test_fields_of_a_later_release_are_ignored(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text())
    data["of a later release"] = {"any": ["thing"]}
    data["signature"]["sample_rate"] = 3
    data["signature"]["inputs"][0]["layout"] = "NCHW"
    data["choice"] = None
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    assert Manifest.load(tmp_path) == manifest


def test_fields_that_a_file_leaves_out_have_their_defaults(manifest: Manifest, tmp_path: Path) -> None:
    data = json.loads(manifest.to_json())
    for name in ("num_inference_steps", "source", "files", "choice"):
        data.pop(name, None)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    loaded = Manifest.load(tmp_path)
    assert (loaded.num_inference_steps, loaded.source, loaded.files, loaded.choice) == (None, "", {}, None)


def test_a_number_of_steps_may_be_unknown_and_is_then_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    dataclasses.replace(manifest, num_inference_steps=None).save(tmp_path)
    unknown = Manifest.load(tmp_path)
    assert unknown.num_inference_steps is None
    assert unknown.steps(7) == 7
    assert manifest.steps() == 50
    with pytest.raises(UsageError, match=r"number of steps: got none.*Give --steps"):
        unknown.steps()


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"../outside": "0" * 64}},
        {"files": {"unet/\0": "0" * 64}},
        {"files": {"/proc/kmsg": "0" * 64}},
        {"graphs": ["../outside/model.onnx"]},
        {"graphs": ["C:\\model.onnx"]},
        {"graphs": []},
        {"component": "../x"},
        {"component": "/etc"},
        {"component": ""},
        {"component": "unet\n"},
        {"num_inference_steps": "50"},
        {"num_inference_steps": 10**400},
        {"num_inference_steps": 0},
        {"opset": 2**40},
        {"groups": [float("inf"), 0]},
        {"groups": {"1000": 0}},
        {"source": ["a"]},
        {"pipeline_class": "\x1b[2J"},
        {"files": []},
        {"files": {"unet/model.onnx": 5}},
        {"choice": {"target": 1}},
        {"format_version": True},
        {"signature": 10**400},
    ],
)
def test_a_path_that_leads_out_and_a_value_of_another_type_are_refused_at_loading(
    manifest: Manifest, tmp_path: Path, changes: dict[str, object]
) -> None:
    manifest.save(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text()) | changes
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    with pytest.raises(EngineError):
        Manifest.load(tmp_path)


def test_a_listed_file_that_is_a_link_out_is_not_read(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path.parent / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("../secret")
    wanted = dataclasses.replace(manifest, files={"link": sha256_of_file(tmp_path / "link")})
    with pytest.raises(EngineError, match="'link', which points outside the folder"):
        wanted.check_files(tmp_path)


def test_graphs_and_configuration_are_found_inside_alone(manifest: Manifest, tmp_path: Path) -> None:
    assert manifest.graph_paths(tmp_path) == (tmp_path / "unet/model.onnx",)
    assert manifest.config_path(tmp_path) == tmp_path / "unet/config.json"
    made = dataclasses.replace(manifest, graphs=("../x.onnx",), component="../x")
    for find in (made.graph_paths, made.config_path):
        with pytest.raises(EngineError, match="points outside the folder"):
            find(tmp_path)


def test_the_folders_of_control_networks_are_inside(manifest: Manifest, tmp_path: Path) -> None:
    paired = dataclasses.replace(manifest, controls=("controlnet", "controlnet_1"))
    paired.save(tmp_path)
    assert Manifest.load(tmp_path) == paired
    assert paired.control_folders(tmp_path) == (tmp_path / "controlnet", tmp_path / "controlnet_1")
    with pytest.raises(EngineError, match="points outside the folder"):
        dataclasses.replace(manifest, controls=("../elsewhere",)).control_folders(tmp_path)
    dataclasses.replace(manifest, controls=("../elsewhere",)).save(tmp_path)
    with pytest.raises(EngineError, match="elsewhere"):
        Manifest.load(tmp_path)
