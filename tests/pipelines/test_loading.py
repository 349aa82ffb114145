"""Folders saved in a variant, and pipelines of which a part is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from accuquant.calibration_facts import LoadingFacts
from accuquant.cli.main import main
from accuquant.errors import SourceError, UsageError
from accuquant.pipelines.loading import Loading, weight_files
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import load_component, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe

QUICK = [
    "--steps", "2", "--group-size", "2", "--num-trajectories", "1", "--iterations", "0",
    "--shared-iterations", "0", "--rounding", "nearest", "--observer", "minmax", "--no-refine",
    "--weight-bits", "7", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def halves(tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny Stable Diffusion, saved as people save it: in float16, variant fp16."""
    folder = tmp_path_factory.mktemp("fp16")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_text_pipeline("sd"), safety_checker=None)
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("diffusion_pytorch_model.safetensors", None),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", None),
        ("model.non_ema.safetensors", "non_ema"),
        ("pytorch_model.bin", None),
    ],
)
def test_the_variant_is_read_off_the_file_names(tmp_path: Path, name: str, variant: str | None) -> None:
    for other in ("config.json", "diffusion_pytorch_model.safetensors.index.json", "flax_model.msgpack"):
        (tmp_path / other).touch()
    (tmp_path / name).touch()
    assert weight_files(tmp_path) == {tmp_path / name: variant}


def test_a_variant_is_named_with_the_option_and_loaded_with_it(halves: Path) -> None:
    with pytest.raises(
        SourceError, match=r"unet': got weights of the variant 'fp16', .* Give --variant fp16"
    ):
        load_source(halves)
    source = load_source(halves, variant="fp16")
    assert {p.dtype for p in source.network.parameters()} == {torch.float32}
    pipe = open_pipeline(source, Task(prompts=("a",)))
    linear = next(m for m in pipe.text_encoder.modules() if isinstance(m, torch.nn.Linear))
    assert linear.weight.dtype == torch.float32
    assert load_component(halves, "vae", source.loading).dtype == torch.float32
    with pytest.raises(SourceError, match=r"vae': got weights of the variant 'fp16'"):
        load_component(halves, "vae")


def test_a_variant_that_is_not_there(tiny_pipeline: Path, halves: Path) -> None:
    with pytest.raises(SourceError, match=r"got weights without a variant, .*'bf16'\. Leave --variant out"):
        load_source(tiny_pipeline, variant="bf16")
    with pytest.raises(
        SourceError, match=r"got weights of the variant 'fp16', .*'bf16'\. Give --variant fp16"
    ):
        load_source(halves, variant="bf16")


@pytest.mark.parametrize("option", [{"variant": "../fp16"}, {"without": ("a/b",)}, {"variant": "fp 16"}])
def test_names_are_names(tiny_pipeline: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"got a name with other characters"):
        load_source(tiny_pipeline, **option)


def test_parts_without_the_variant_come_from_plain_files(
    halves: Path, tiny_text_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(halves, tmp_path / "mixed"))
    for part in ("vae", "text_encoder"):
        shutil.rmtree(folder / part)
        shutil.copytree(tiny_text_pipeline("sd") / part, folder / part)
    source = load_source(folder, variant="fp16")
    open_pipeline(source, Task(prompts=("a",)))
    load_component(folder, "vae", source.loading)


@pytest.mark.slow
def test_the_commands_carry_the_variant_from_the_recipe(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "r.safetensors", tmp_path / "out"
    calibrate = ["calibrate", str(halves), "--prompt", "a", "-o", str(recipe), *QUICK]
    assert main(calibrate) == 1
    assert "Give --variant fp16" in capsys.readouterr().err
    assert main([*calibrate, "--variant", "fp16"]) == 0
    assert Recipe.load(recipe).calibration["loading"] == {"variant": "fp16", "without": []}
    assert (
        main(["export", str(halves), "--recipe", str(recipe), "-o", str(out), "--target", "cpu", "--quiet"])
        == 0
    )
    sample = ["sample", str(out), "--prompt", "a", "--num-images", "1", "--output-dir", str(tmp_path / "i")]
    assert main([*sample, "--quiet"]) == 0
    assert len(list((tmp_path / "i").glob("*.png"))) > 0


@pytest.fixture(scope="module")
def without_t5(tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny SD 3 as people download it: model_index.json names a T5 that is not there."""
    folder = Path(shutil.copytree(tiny_text_pipeline("sd3"), tmp_path_factory.mktemp("sd3") / "pipeline"))
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    return folder


def test_a_missing_t5_is_named_with_the_option(without_t5: Path) -> None:
    source = load_source(without_t5)
    with pytest.raises(
        SourceError,
        match=r"got no folder (text_encoder|tokenizer)_3, .*Give --without text_encoder_3 to leave",
    ):
        open_pipeline(source, Task(prompts=("a",)))


def test_sd3_works_without_its_t5(without_t5: Path, picture_folder: Path) -> None:
    source = load_source(without_t5, without=("text_encoder_3",))
    pipe = open_pipeline(source, Task(prompts=("a",)))
    assert (pipe.text_encoder_3, pipe.tokenizer_3) == (None, None)
    changed = open_pipeline(source, Task(prompts=("a",), images=(str(picture_folder / "images" / "0.png"),)))
    assert (type(changed).__name__, changed.text_encoder_3) == ("StableDiffusion3Img2ImgPipeline", None)


def test_a_pipeline_that_was_saved_without_it_needs_no_option(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tiny_text_pipeline("sd3"), text_encoder_3=None, tokenizer_3=None
    )
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    assert open_pipeline(load_source(tmp_path), Task(prompts=("a",))).text_encoder_3 is None


@pytest.mark.parametrize(("kind", "part"), [("sd3", "vae"), ("sd3", "text_encoder"), ("sd", "text_encoder")])
def test_a_part_that_is_needed_cannot_be_left_out(
    tiny_text_pipeline: Callable[[str], Path], kind: str, part: str
) -> None:
    source = load_source(tiny_text_pipeline(kind), without=(part,))
    with pytest.raises(UsageError, match=rf"--without {part}: got a part that StableDiffusion\w+ needs"):
        open_pipeline(source, Task(prompts=("a",)))


def test_another_missing_part_is_an_incomplete_pipeline(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_text_pipeline("sd"), tmp_path / "pipeline"))
    shutil.rmtree(folder / "vae")
    with pytest.raises(SourceError, match=r"got no folder vae, .*The pipeline is incomplete"):
        open_pipeline(load_source(folder), Task(prompts=("a",)))


@pytest.mark.slow
def test_the_commands_carry_what_is_left_out_from_the_recipe(without_t5: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.safetensors", tmp_path / "out"
    given = ["--prompt", "a", "-o", str(recipe), *QUICK]
    assert main(["calibrate", str(without_t5), *given, "--without", "text_encoder_3"]) == 0
    assert Recipe.load(recipe).calibration["loading"] == {"variant": None, "without": ["text_encoder_3"]}
    assert (
        main(
            ["export", str(without_t5), "--recipe", str(recipe), "-o", str(out), "--quiet", "--target", "cpu"]
        )
        == 0
    )
    sample = ["sample", str(out), "--prompt", "a", "--num-images", "1", "--output-dir", str(tmp_path / "i")]
    assert main([*sample, "--quiet"]) == 0


def test_what_is_downloaded_from_the_hub_is_the_variant_without_the_part(
    tiny_text_pipeline: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(_hub_id: str, **chosen: Any) -> str:
        asked.append(chosen)
        return str(tiny_text_pipeline("sd3"))

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    load_source("somebody/sd3", without=("text_encoder_3",))
    with pytest.raises(SourceError, match=r"Leave --variant out"):
        load_source("somebody/sd3", variant="fp16")
    always = {"revision": None, "use_safetensors": True}
    assert asked == [{**always, "text_encoder_3": None, "tokenizer_3": None}, {**always, "variant": "fp16"}]


def test_a_choice_of_the_command_goes_before_the_recorded_one() -> None:
    recorded = LoadingFacts("fp16", ("text_encoder_3",))
    assert Loading().or_recorded(recorded) == Loading("fp16", ("text_encoder_3",))
    assert Loading("bf16").or_recorded(recorded).variant == "bf16"
    assert Loading().or_recorded(LoadingFacts()) == Loading()
