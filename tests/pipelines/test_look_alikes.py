"""What is no diffusers pipeline, or not one of trained weights, is called by its name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from accuquant.cli.main import main
from accuquant.errors import SourceError
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny pipeline that may be changed."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "quanto", "weights_dtype": "int8"}, "quanto"),
        ("anything", "quantization_config"),
    ],
)
def test_a_quantized_checkpoint_is_named(folder: Path, settings: Any, method: str) -> None:
    edit(folder / "unet" / "config.json", quantization_config=settings)
    with pytest.raises(
        SourceError,
        match=rf"unet': got weights that were quantized \(.*{method}\).*quantized from: AccuQuant",
    ):
        load_source(folder)


def test_a_quantized_text_encoder_is_named(tiny_text_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_text_pipeline("sd"), tmp_path / "pipeline"))
    edit(folder / "text_encoder" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    source = load_source(folder)
    with pytest.raises(SourceError, match=r"text_encoder': got weights that were quantized \(.*bitsandbytes"):
        open_pipeline(source, Task(prompts=("a",)))


@pytest.mark.parametrize(
    "entry", [["diffusers", "OnnxRuntimeModel"], ["optimum.onnxruntime.modeling_diffusion", "ORTUnet"]]
)
def test_a_folder_of_onnx_files_is_named(folder: Path, entry: list[str]) -> None:
    edit(folder / "model_index.json", unet=entry, _class_name="OnnxStableDiffusionPipeline")
    (folder / "unet" / "model.onnx").write_bytes(b"")
    graph = re.escape(str(folder / "unet" / "model.onnx"))
    with pytest.raises(
        SourceError, match=rf"got a pipeline of ONNX files, .*accuquant export {graph} -o OUT"
    ):
        load_source(folder)


def test_a_folder_with_diffusers_classes_and_a_graph_in_place_of_weights_is_named(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "model.onnx")
    with pytest.raises(SourceError, match=r"got a pipeline of ONNX files"):
        load_source(folder)


def test_a_file_of_quantized_weights_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "flux.GGUF").write_bytes(b"weights")
    with pytest.raises(SourceError, match=r"weights that were quantized, .*checkpoint that they were"):
        load_source(tmp_path / "flux.GGUF")


def test_an_onnx_file_for_calibration_says_where_it_can_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"graph")
    output = str(tmp_path / "r.safetensors")
    assert main(["calibrate", str(tmp_path / "unet.onnx"), "-o", output]) == 1
    assert "got an ONNX file, " in capsys.readouterr().err


def test_an_export_given_as_source_names_its_pipeline(
    tiny_source: Source, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Manifest(
        pipeline_class="DDIMPipeline",
        component="unet",
        lowering="rescale",
        precision="fp32",
        opset=21,
        graphs=("unet/model.onnx",),
        groups=StepGroups((1000.0, 0.0)),
        signature=tiny_source.signature,
        model_hash="0" * 64,
        num_inference_steps=4,
        accuquant_version="0",
        source="./my-ddpm",
    ).save(folder)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "model.onnx")
    with pytest.raises(
        SourceError, match=r"got a folder that `accuquant export` wrote, .*Give ./my-ddpm instead"
    ):
        load_source(folder)
    assert main(["calibrate", str(folder), "-o", str(tmp_path / "r.safetensors")]) == 1
    assert "Give ./my-ddpm instead" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named_by_every_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    tensors["conv_in.weight"][0, 0, 0, :2] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    for observer in ("mse", "norm", "minmax", "percentile"):
        arguments = ["calibrate", str(folder), "--observer", observer, "-o", str(tmp_path / "r.safetensors")]
        assert main(arguments) == 1
        assert "got 2 of the 72 values of 'conv_in.weight' NaN or infinite" in capsys.readouterr().err
    tensors["conv_in.weight"][0, 0, 0, :2] = torch.inf
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        SourceError, match=r"unet: got 2 of the 72 values of 'conv_in.weight' NaN or infinite"
    ):
        load_source(folder)


def test_a_network_that_cannot_run_at_its_own_size_is_refused(
    make_unet: Callable[..., Any], tmp_path: Path
) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler

    unet = make_unet(
        sample_size=28,
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"got images of 28x28 for 4 levels, .*multiples of 8"):
        load_source(tmp_path)
