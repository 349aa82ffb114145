"""A pipeline's folder can come from anybody: nothing in it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accuquant.cli.main import main
from accuquant.errors import SourceError
from accuquant.pipelines.model_index import check_classes, part_class, read_index
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task

HOSTILE = """
from pathlib import Path
Path({trace!r}).write_text("this ran")
from diffusers import DDIMPipeline, DiffusionPipeline, DDIMScheduler, UNet2DModel
class Evil(UNet2DModel): pass
class EvilPipeline(DDIMPipeline): pass
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return the file that a hostile module writes."""
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(tiny_pipeline: Path, tmp_path: Path, trace: Path) -> Path:
    """Return a pipeline's folder with modules in every place where a library might look for them."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    code = HOSTILE.format(trace=str(trace))
    for name in ("evil", "pipeline", "diffusers", "transformers", "unet", "my_unet"):
        for place in (folder, folder / "unet", folder / "scheduler"):
            (place / f"{name}.py").write_text(code)
    return folder


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["evil", "EvilPipeline"]},
        {"_class_name": ["pipeline", "EvilPipeline"]},
        {"unet": ["evil", "Evil"]},
        {"unet": ["my_unet", "Evil"]},
        {"unet": ["..unet.evil", "Evil"]},
        {"scheduler": ["evil", "Evil"]},
        {"extra": ["evil", "Evil"]},
        {"text_encoder": ["evil", "Evil"]},
        {"unet": ["diffusers", "UNet2DModel"]},  # unet/diffusers.py would be taken for the library
    ],
)
def test_a_module_beside_a_pipeline_is_never_run(hostile: Path, trace: Path, changes: dict[str, Any]) -> None:
    edit_index(hostile, **changes)
    with pytest.raises(SourceError, match=r"the Python code of a folder is never run"):
        load_source(hostile)
    assert not trace.exists()


def test_the_commands_refuse_it_too(
    hostile: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_index(hostile, unet=["evil", "Evil"])
    for command in (
        ["calibrate", str(hostile), "-o", str(tmp_path / "r.safetensors")],
        ["export", str(hostile), "-o", str(tmp_path / "out")],
    ):
        assert main(command) == 1
        assert "the Python code of a folder is never run" in capsys.readouterr().err
    assert not trace.exists()


def test_auto_map_of_a_text_encoder_is_not_followed(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path, trace: Path
) -> None:
    folder = Path(shutil.copytree(tiny_text_pipeline("sd"), tmp_path / "pipeline"))
    (folder / "text_encoder" / "evil.py").write_text(HOSTILE.format(trace=str(trace)))
    for name in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        path = folder / name
        classes = {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    open_pipeline(load_source(folder), Task(prompts=("a",)))
    assert not trace.exists()


def test_a_file_that_shadows_a_library_is_refused(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path, trace: Path
) -> None:
    folder = Path(shutil.copytree(tiny_text_pipeline("sd"), tmp_path / "pipeline"))
    (folder / "text_encoder" / "transformers.py").write_text(HOSTILE.format(trace=str(trace)))
    with pytest.raises(SourceError, match=r"text_encoder: .*never run"):
        load_source(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "entry",
    [
        ["diffusers", "DiffusionPipeline"],
        ["diffusers", "DDIMPipeline"],
        ["transformers", "AutoModel"],
        ["transformers", "pipeline"],
        ["os", "system"],
        ["diffusers.pipelines.stable_diffusion", "StableDiffusionSafetyChecker"],
        ["pipeline_utils", "ModelMixin"],
        ["_private", "Evil"],
    ],
)
def test_only_models_schedulers_and_processors_are_parts(tmp_path: Path, entry: list[str]) -> None:
    with pytest.raises(SourceError, match=r"got vae: "):
        part_class(tmp_path, "vae", entry)


@pytest.mark.parametrize(
    "entry",
    [
        ["diffusers", "AutoencoderKL"],
        ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        ["transformers", "CLIPTextModelWithProjection"],
        ["transformers", "CLIPTokenizer"],
        ["transformers", "T5TokenizerFast"],
        ["transformers", "CLIPImageProcessor"],
        ["transformers", "CLIPFeatureExtractor"],  # in the first Stable Diffusion
        ["stable_diffusion", "StableDiffusionSafetyChecker"],
        ["latent_diffusion", "LDMBertModel"],
    ],
)
def test_what_pipelines_are_made_of_is_taken(tmp_path: Path, entry: list[str]) -> None:
    found = part_class(tmp_path, "part", entry)
    assert found is not None
    renamed = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
    assert found.__name__.startswith(renamed.get(entry[1], entry[1]).removesuffix("Fast"))


def test_every_tiny_pipeline_passes(tiny_text_pipeline: Callable[[str], Path]) -> None:
    for kind in ("sd", "sdxl", "sd3", "flux", "ldm-text", "super-resolution", "variation"):
        folder = tiny_text_pipeline(kind)
        check_classes(folder, read_index(folder))


def test_deep_json_is_a_refusal(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    (folder / "model_index.json").write_text('{"a":' * 100_000)
    with pytest.raises(SourceError, match=r"model_index.json': got "):
        load_source(folder)
