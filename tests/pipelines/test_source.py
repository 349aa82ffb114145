"""Loading a pipeline: what is there is read, what is not is explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from accuquant.errors import SourceError
from accuquant.pipelines.source import load_source


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny pipeline that may be damaged."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hub_id: str, **_: object) -> str:
        raise OSError(f"{hub_id} cannot be reached\nand more lines")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse)


def test_reads_the_network_and_the_scheduler(tiny_pipeline: Path) -> None:
    source = load_source(tiny_pipeline)
    assert (source.component, source.pipeline_class) == ("unet", "DDIMPipeline")
    assert type(source.network).__name__ == "UNet2DModel"
    assert type(source.scheduler).__name__ == "DDIMScheduler"
    assert source.signature.sizes["height"] == 8
    assert source.folder == tiny_pipeline
    assert not source.network.training
    assert not any(parameter.requires_grad for parameter in source.network.parameters())


def test_half_precision_weights_are_read_as_float32(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, {"format": "pt"})
    assert {p.dtype for p in load_source(str(folder)).network.parameters()} == {torch.float32}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"got no such folder, .* Check the path"):
        load_source(tmp_path / "missing")


@pytest.mark.parametrize("name", ["./missing", "~/missing", "/missing", "a/b/c"])
def test_what_looks_like_a_path_is_not_downloaded(name: str) -> None:
    with pytest.raises(SourceError, match=r"no such folder"):
        load_source(name)


def test_a_file_is_not_a_pipeline(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"got a file"):
        load_source(folder / "model_index.json")


def test_a_hub_id_that_cannot_be_downloaded() -> None:
    with pytest.raises(
        SourceError, match=r"pipeline 'nobody/ddpm': got OSError: nobody/ddpm cannot be reached, "
    ):
        load_source("nobody/ddpm")


def test_a_hub_id_is_downloaded(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(tiny_pipeline)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    source = load_source("somebody/ddpm")
    assert (source.name, source.folder) == ("somebody/ddpm", tiny_pipeline)
    assert load_source("somebody/ddpm", revision="v1").name == "somebody/ddpm@v1"
    assert asked == [
        ("somebody/ddpm", {"revision": None, "use_safetensors": True}),
        ("somebody/ddpm", {"revision": "v1", "use_safetensors": True}),
    ]


def test_a_folder_without_model_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(SourceError, match=r"got no model_index.json, .* Point at the pipeline's folder"):
        load_source(folder)


def test_the_folder_of_one_network_is_recognized(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"it holds a single network"):
        load_source(folder / "unet")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_model_index_that_is_not_a_json_object(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SourceError, match=r"model_index.json': got .*copy or download the pipeline again"):
        load_source(folder)


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "entry",
    [["diffusers", "UNet9DModel"], [None, None], "UNet2DModel", ["diffusers"], 3, ["diffusers", "logging"]],
)
def test_an_unknown_class_is_named(folder: Path, entry: object) -> None:
    edit_index(folder, unet=entry)
    with pytest.raises(SourceError, match=r"got unet: .*expected a class of the installed diffusers library"):
        load_source(folder)


def test_a_pipeline_without_a_denoising_network(folder: Path) -> None:
    edit_index(folder, unet=None, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(
        SourceError, match=r"got the components .*vae.* expected a denoising network named unet"
    ):
        load_source(folder)


def test_a_pipeline_without_a_scheduler(folder: Path) -> None:
    edit_index(folder, scheduler=None)
    with pytest.raises(SourceError, match=r"got scheduler: None"):
        load_source(folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SourceError, match=r"unet': got .*The files are damaged or incomplete"):
        load_source(folder)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"],
)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SourceError, match=r"The files are damaged or incomplete"):
        load_source(folder)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_configuration_that_is_not_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(SourceError, match=r"The files are damaged or incomplete"):
        load_source(folder)


def test_weights_of_another_network(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16]}))
    with pytest.raises(SourceError, match=r"The files are damaged or incomplete"):
        load_source(folder)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_values(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SourceError, match=r"conv_out.weight"):
        load_source(folder)
