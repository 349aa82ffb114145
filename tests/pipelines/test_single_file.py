"""Checkpoints in a single file, in the layout of the original code."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import ldm_checkpoint, ldm_unet

from accuquant.cli.main import main
from accuquant.errors import SourceError
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import load_source
from accuquant.pipelines.source_job import source_job
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.units.job import opened
from accuquant.units.travelling import Unpacker, pack

UNET = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


@pytest.fixture(scope="module")
def pipeline(tiny_text_pipeline: Callable[[str], Path]) -> Path:
    return tiny_text_pipeline("sd")


@pytest.fixture(scope="module")
def weights(pipeline: Path) -> dict[str, torch.Tensor]:
    return ldm_checkpoint(pipeline)


@pytest.fixture(scope="module")
def configuration(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pipeline's folder without any weights."""
    folder = tmp_path_factory.mktemp("configuration") / "sd"
    return Path(shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCUQUANT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def file(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_file(weights, path)
    return path


def test_a_file_is_the_pipeline_that_it_was_made_of(file: Path, pipeline: Path, configuration: Path) -> None:
    source, original = load_source(file, pipeline_config=str(configuration)), load_source(pipeline)
    assert source.name == str(file)
    assert source.model_hash == original.model_hash
    assert dict(source.scheduler.config) == dict(original.scheduler.config)
    for name in WEIGHTS:
        found, wanted = load_file(source.folder / name), load_file(pipeline / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert open_pipeline(source, Task(prompts=("a",))).tokenizer("a").input_ids[1] == 26  # a</w>


def test_it_is_taken_apart_once_and_again_when_it_has_changed(
    file: Path, configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path / "cache"))
    path = Path(shutil.copy(file, tmp_path / "m.safetensors"))
    first = load_source(path, pipeline_config=str(configuration)).folder
    made = (first / "model_index.json").stat().st_mtime_ns
    again = load_source(path, pipeline_config=str(configuration)).folder
    assert (again, (again / "model_index.json").stat().st_mtime_ns) == (first, made)
    os.utime(path, (1, 1))
    assert load_source(path, pipeline_config=str(configuration)).folder != first
    assert len(list((tmp_path / "cache" / "single-files").iterdir())) == 2


def test_half_precision_stays_as_it_is(
    weights: dict[str, torch.Tensor], configuration: Path, tmp_path: Path
) -> None:
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "half.safetensors")
    source = load_source(tmp_path / "half.safetensors", pipeline_config=str(configuration), as_stored=True)
    assert {tensor.dtype for tensor in load_file(source.folder / UNET).values()} == {torch.float16}
    conv: Any = source.network.conv_in
    assert torch.equal(
        conv.weight.float(), weights["model.diffusion_model.input_blocks.0.0.weight"].half().float()
    )


class Program:
    """What runs when a pickle with it is read carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_is_read_where_it_is_allowed_and_no_program_in_it_is_run(
    weights: dict[str, torch.Tensor], file: Path, configuration: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "model.ckpt")
    with pytest.raises(SourceError, match=r"got a pickle, which may hold a program, .*give --allow-pickle"):
        load_source(tmp_path / "model.ckpt", pipeline_config=str(configuration))
    found = load_source(tmp_path / "model.ckpt", pipeline_config=str(configuration), allow_pickle=True)
    assert found.model_hash == load_source(file, pipeline_config=str(configuration)).model_hash
    with open(tmp_path / "evil.ckpt", "wb") as opened_file:
        pickle.dump({"state_dict": Program(tmp_path / "ran")}, opened_file)
    with pytest.raises(SourceError, match="expected a pickle of tensors and numbers alone"):
        load_source(tmp_path / "evil.ckpt", pipeline_config=str(configuration), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_without_a_configuration_that_of_its_kind_comes_from_the_hub(
    file: Path, configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, **patterns: Any) -> str:
        asked.append(name)
        return str(configuration)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_source(file).model_hash == load_source(file, pipeline_config=str(configuration)).model_hash
    assert asked == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def test_without_a_configuration_and_without_the_hub_the_option_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_name: str, **_patterns: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        SourceError, match=r"got what looks like stable-diffusion-v1-5/.*Give --pipeline-config FOLDER"
    ):
        load_source(file)


def test_a_file_with_the_network_alone_says_where_it_goes(
    pipeline: Path, configuration: Path, tmp_path: Path
) -> None:
    save_file(ldm_unet(load_file(pipeline / UNET)), tmp_path / "unet.safetensors")
    with pytest.raises(SourceError, match=r"goes beside the pipeline's folder: SOURCE --network '.*unet"):
        load_source(tmp_path / "unet.safetensors", pipeline_config=str(configuration))


def test_a_damaged_file_is_named(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"'.*m\.safetensors': got SafetensorError"):
        load_source(tmp_path / "m.safetensors", pipeline_config=str(configuration))


def test_a_worker_opens_the_file_itself(file: Path, configuration: Path) -> None:
    source = load_source(file, pipeline_config=str(configuration))
    job = source_job(source)
    there: Any = Unpacker({}).unpack(pack(job, {}).data, lambda _token: b"")
    assert there.open.source == str(file)
    with opened(there, "node", "cpu") as roots:
        assert roots["network"] is not source.network


@pytest.mark.slow
def test_the_commands_take_a_file_from_calibration_to_verification(
    file: Path, configuration: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "r.safetensors", tmp_path / "out"
    quick = [
        "--steps",
        "2",
        "--group-size",
        "2",
        "--num-trajectories",
        "1",
        "--preset",
        "fast",
        "--no-refine",
    ]
    quick += [
        "--observer",
        "minmax",
        "--rounding",
        "nearest",
        "--weight-bits",
        "7",
        "--prompt",
        "a",
        "--quiet",
    ]
    given = ["--pipeline-config", str(configuration)]
    assert main(["calibrate", str(file), "-o", str(recipe), *given, *quick]) == 0
    assert Recipe.load(recipe).facts.loading.pipeline_config == str(configuration)
    # what it was read with is in the recipe
    export = ["export", str(file), "--recipe", str(recipe), "-o", str(out), "--target", "cpu", "--quiet"]
    assert main(export) == 0
    verify = ["verify", str(out), "--reference", str(file), "--num-images", "2", "--features", "none"]
    verify += ["--engine", "onnxruntime", "--min-psnr", "none", "--prompt", "b", "--quiet"]
    assert main(verify) == 0
    sample = ["sample", str(out), "--prompt", "a", "--num-images", "1", "--output-dir", str(tmp_path / "i")]
    assert main([*sample, "--quiet"]) == 0
    assert list((tmp_path / "i").glob("*.png"))
