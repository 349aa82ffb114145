"""The float parts beside the network: the graphs compute what the modules compute, at other sizes too."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.cli.main import main
from accuquant.errors import ExportError, SourceError, UsageError
from accuquant.export import write_pipeline
from accuquant.export.write.pipeline_parts import write_parts
from accuquant.manifest import Manifest
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_parts import engine_parts
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.loop_profile import LoopProfile
from accuquant.runtime.onnxruntime_runner import OnnxRuntimeRunner
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.verify import verify

SETTINGS = CalibrationSettings(
    steps=2, group_size=1, num_trajectories=1, batch_size=1, iterations=0, shared_iterations=0,
    observer="minmax",
    rounding="nearest", refine=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tiny_text_pipeline: Callable[[str], Path]) -> Source:
    return load_source(tiny_text_pipeline("sd"))


@pytest.fixture(scope="module")
def recipe(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "recipe.safetensors"
    return calibrate(source, SETTINGS, output=path, task=Task(prompts=("a cat",), guidance_scale=1.0))


@pytest.fixture(scope="module")
def whole(source: Source, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    write_pipeline(source, recipe, folder, whole_pipeline=True)
    return folder


def run(path: Path, array: npt.NDArray[np.generic]) -> dict[str, npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {name: array}), strict=True))


@pytest.mark.slow
def test_the_text_encoder_is_the_pipelines_own(whole: Path, source: Source) -> None:
    encoder = open_pipeline(source, Task()).text_encoder
    ids = np.random.default_rng(0).integers(0, 54, (3, 16))
    with torch.no_grad():
        expected = encoder(torch.from_numpy(ids), output_hidden_states=True)
    found = run(whole / "text_encoder", ids)
    assert list(found)[:2] == ["last_hidden_state", "pooler_output"]
    np.testing.assert_allclose(found["last_hidden_state"], expected.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(found["pooler_output"], expected.pooler_output, atol=1e-5)
    for k, state in enumerate(expected.hidden_states):
        np.testing.assert_allclose(found[f"hidden_states.{k}"], state, atol=1e-5)


@pytest.mark.slow
def test_both_halves_of_the_autoencoder_are_the_pipelines_own(whole: Path, source: Source) -> None:
    vae = open_pipeline(source, Task()).vae
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (1, 3, 20, 28)).astype(np.float32)
    latents = rng.normal(size=(3, 4, 7, 5)).astype(np.float32)
    with torch.no_grad():
        parameters = vae.encode(torch.from_numpy(image)).latent_dist.parameters.numpy()
        decoded = vae.decode(torch.from_numpy(latents)).sample.numpy()
    np.testing.assert_allclose(run(whole / "vae_encoder", image)["latent_parameters"], parameters, atol=1e-5)
    np.testing.assert_allclose(run(whole / "vae_decoder", latents)["sample"], decoded, atol=1e-5)


@pytest.mark.slow
def test_the_folder_holds_what_model_index_names_and_the_manifest_lists_it(whole: Path) -> None:
    index = json.loads((whole / "model_index.json").read_text())
    named = {name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}
    folders = {path.name for path in whole.iterdir() if path.is_dir()}
    assert folders == (named - {"vae"}) | {"vae_encoder", "vae_decoder"}
    manifest = Manifest.load(whole)
    manifest.check_files(whole)
    assert {"text_encoder/model.onnx", "vae_decoder/config.json"} <= set(manifest.files)
    assert manifest.graphs == ("unet/model.onnx",)


@pytest.mark.slow
def test_openvino_calls_every_input_of_the_network_by_its_own_name(whole: Path) -> None:
    """Where it removes an idle node, OpenVINO gives the input that node's name, which Optimum then reads."""
    path = whole / "unet" / "model.onnx"
    model = openvino.Core().read_model(path)
    openvino.Core().compile_model(model, "CPU")
    assert [value.names for value in model.inputs] == [{"sample"}, {"timestep"}, {"encoder_hidden_states"}]
    readers = [
        n.op_type for n in onnx.load(whole / "unet" / "model.onnx").graph.node if "timestep" in n.input
    ]
    assert "Cast" not in readers


@pytest.mark.slow
def test_a_whole_folder_is_sampled_without_its_pipeline(whole: Path, tmp_path: Path) -> None:
    """Text encoder and decoder in the engine make the images of those in torch, but for last bits."""
    task = Task(prompts=("a cat", "two dogs"), guidance_scale=1.0)
    profile = LoopProfile()
    expected = sample_pipeline(whole, task, parts="torch", num_images=2)
    alone = tmp_path / "moved"
    shutil.copytree(whole, alone)
    manifest = Manifest.load(alone)
    dataclasses.replace(manifest, source="/no/such/folder").save(alone)
    images = sample_pipeline(alone, task, num_images=2, profile=profile)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert profile.ran_by == {"text encoder": "openvino", "decoder": "openvino"}
    with pytest.raises(SourceError, match="/no/such/folder"):
        sample_pipeline(alone, task, parts="torch", num_images=1)


@pytest.mark.slow
def test_a_script_opens_a_whole_folder_in_two_lines(whole: Path) -> None:
    unet = EngineUNet.from_pretrained(whole)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(whole, unet=unet, **engine_parts(whole))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    images = pipe(["a cat"], generator=[torch.Generator().manual_seed(0)], **call).images
    task = Task(prompts=("a cat",), guidance_scale=1.0)
    np.testing.assert_allclose(images, sample_pipeline(whole, task, num_images=1), atol=1e-6)


@pytest.mark.slow
def test_text_encoders_in_int8_take_a_quarter_and_verify_judges_the_images_they_make(
    source: Source, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_pipeline(source, recipe, out, whole_pipeline=True, text_weights="int8")
    sizes = [sum(weight_bytes(folder / "text_encoder").values()) for folder in (whole, out)]
    assert sizes[1] < 0.55 * sizes[0]  # the encoder is tiny: its table, positions and norms stay
    assert Manifest.load(out).text_weights == "int8"
    ids = np.random.default_rng(0).integers(0, 54, (3, 16))
    exact = run(whole / "text_encoder", ids)["last_hidden_state"]
    with OnnxRuntimeRunner(out / "text_encoder" / "model.onnx") as runner:
        (name,) = [spec.name for spec in runner.input_specs]
        rounded = runner.infer({name: ids})["last_hidden_state"]
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.02
    task = Task(prompts=("a cat", "two dogs"), guidance_scale=1.0)
    report = verify(out, source, engine="onnxruntime", num_images=2, task=task)
    (note,) = [note for note in report.notes if "int8 weights" in note]
    percent = re.search(r"encoder_hidden_states by ([0-9.]+)%", note)
    assert percent is not None
    assert 0.01 < float(percent[1]) < 2
    # sample makes the images that were judged
    assert (
        np.abs(sample_pipeline(out, task, num_images=1) - sample_pipeline(whole, task, num_images=1)).max()
        > 1e-6
    )


def weight_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each initializer."""
    initializers = onnx.load(folder / "model.onnx").graph.initializer
    return {t.name: len(t.raw_data) or 4 * len(t.float_data) for t in initializers}


def test_a_pipeline_that_optimum_does_not_know_is_refused_by_name(
    tiny_source: Source, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"DDIMPipeline: got --whole-pipeline.*StableDiffusionXLPipeline"):
        write_pipeline(tiny_source, recipe, tmp_path / "out", whole_pipeline=True)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_for_each_step_group_is_refused(source: Source, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--lowering per-group"):
        write_pipeline(source, recipe, tmp_path / "out", lowering="per-group", whole_pipeline=True)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_optimum_has_no_names_for_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.export.write.pipeline_parts._TEXT_OUTPUTS", {"T5EncoderModel": ()})
    with pytest.raises(ExportError, match="text_encoder of the pipeline: got CLIPTextModel"):
        write_parts(source, tmp_path)


def test_a_graph_has_no_whole_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model.onnx", "-o", str(tmp_path / "out.onnx"), "--whole-pipeline"]) != 0
    assert "--whole-pipeline: got an .onnx file as SOURCE" in capsys.readouterr().err
