"""Pipelines that make videos: their calls, their loop, their frames, and both engines inside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from family_cases import SETTINGS
from PIL import Image
from tiny_videos import VIDEOS
from torch import Tensor

from accuquant.audit.audit_model import audit_model
from accuquant.calibration import calibrate
from accuquant.calibration.trajectory import record_from
from accuquant.cli import sample
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import seeded_generators
from accuquant.engines import Target
from accuquant.errors import CalibrationError, SourceError, UsageError
from accuquant.evaluation.evaluate import evaluate
from accuquant.evaluation.evaluation_settings import EvaluationSettings
from accuquant.export import write_pipeline
from accuquant.networks.signature import TensorSpec
from accuquant.networks.simulate import simulate
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import PipelineStarter, open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.sample_pipeline import pictures_of, sample_pipeline
from accuquant.verification.measure.decoder import load_decoder, unpacked
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify

PROMPTS = ("a cat", "two dogs")
STEPS = 4
#: case -> pipeline, what its task has beside prompts
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": ("wan", {"image_size": (32, 48), "num_frames": 9}),
    "wan-euler": ("wan-euler", {"image_size": 32, "num_frames": 5, "guidance_scale": 3.0}),
    "wan-without-guidance": ("wan", {"image_size": 32, "num_frames": 5, "guidance_scale": 1.0}),
    "wan-per-token": ("wan-per-token", {"image_size": (64, 32), "num_frames": 5}),
    "ltx": ("ltx", {"image_size": (32, 64), "num_frames": 9, "negative_prompt": "blurred"}),
    "ltx-rescaled": ("ltx", {"image_size": 32, "num_frames": 5, "guidance_rescale": 0.7}),
}
#: Sides in pixels of what engines make, where it is not 32.
SIDES = {"wan-per-token": 64}
Open = Callable[[str], tuple[Source, Task]]


@pytest.fixture
def opened(tiny_text_pipeline: Callable[[str], Path]) -> Open:
    """Return a function that loads a case: its source, as its pipeline calls it, and its task."""

    def give(case: str) -> tuple[Source, Task]:
        kind, choices = CASES[case]
        task = Task(prompts=PROMPTS, **choices)
        return called_source(load_source(tiny_text_pipeline(kind)), task, STEPS), task

    return give


def test_the_calls_of_wan_tell_frames_sides_and_tokens(opened: Open) -> None:
    signature = opened("wan")[0].signature
    assert signature.sample == TensorSpec("hidden_states", ("batch", 4, "frames", "height", "width"))
    assert signature.conditioning == (TensorSpec("encoder_hidden_states", ("batch", "tokens", 16)),)
    assert signature.output.shape == signature.sample.shape
    # 9 frames are 1 + 8 / 4 in the autoencoder, 32x48 pixels 4x6
    expected = {"frames": 3, "height": 6, "width": 4, "tokens": 512}
    assert signature.sizes == {"batch": 1, "steps": 1, **expected}


def test_numbers_that_ltx_is_told_are_constants_of_the_graph(opened: Open) -> None:
    signature = opened("ltx")[0].signature
    # 9 frames are 3 latents, 32x64 pixels 8x16; packed, they are 384 tokens
    assert signature.sample == TensorSpec("hidden_states", ("batch", 3 * 8 * 16, 8))
    assert [spec.name for spec in signature.conditioning] == [
        "encoder_hidden_states", "encoder_attention_mask",
    ]  # fmt: skip
    assert signature.call is not None
    told = {path[0]: value for path, value in signature.call.constants.items() if len(path) == 1}
    assert (told["num_frames"], told["height"], told["width"]) == (3, 16, 8)
    scale = [signature.call.constants["rope_interpolation_scale", axis] for axis in range(3)]
    assert scale == [4 / 25, 4, 4]


def test_a_number_of_frames_is_refused_where_a_pipeline_makes_images(
    tiny_text_pipeline: Callable[[str], Path],
) -> None:
    task = Task(prompts=PROMPTS, num_frames=5)
    with pytest.raises(UsageError, match=r"--num-frames: got a choice, expected none: StableDiffusionPipe"):
        open_starter(load_source(tiny_text_pipeline("sd")), task, steps=2)


def test_two_networks_of_one_trajectory_are_refused_by_name(
    tiny_text_pipeline: Callable[[str], Path],
) -> None:
    with pytest.raises(SourceError, match=r"transformer_2 takes the steps below boundary_ratio \(0.875\)"):
        load_source(tiny_text_pipeline("wan-two-networks"))


def test_videos_of_images_are_refused_by_name(
    tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> None:
    images = Task.read(images=picture_folder / "images").images
    task = Task(prompts=PROMPTS, images=images, image_size=32, num_frames=5)
    with pytest.raises(
        CalibrationError, match="WanImageToVideoPipeline: got videos that are made of its image"
    ):
        called_source(load_source(tiny_text_pipeline("wan-image")), task, STEPS)


def test_a_network_that_needs_every_tokens_timestep_is_refused(
    tiny_text_pipeline: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(tiny_text_pipeline("wan-per-token"))
    forward = type(source.network).forward

    def counting(self: Any, hidden_states: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        (predicted,) = forward(self, hidden_states, timestep, *args, **kwargs)
        return (predicted * timestep.numel(),)

    counting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(source.network), "forward", counting)
    task = Task(prompts=PROMPTS, image_size=64, num_frames=5)
    with pytest.raises(SourceError, match="a timestep for every token, and another prediction"):
        called_source(source, task, STEPS)


def pipeline_run(source: Source, task: Task) -> tuple[list[Tensor], np.ndarray]:
    """Run the real pipeline for two videos; return its latents after every step, and what it made of them."""
    pipe = open_pipeline(source, task)
    seen: list[Tensor] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        seen.append(result[0])
        return result

    pipe.scheduler.step = spy
    arguments = call_arguments(pipe, task, range(2), STEPS) | {"output_type": "np"}
    frames = pictures_of(pipe(**arguments, generator=seeded_generators([11, 12])))
    del pipe.scheduler.step
    return seen, frames


@pytest.mark.parametrize("case", ["wan", "ltx"])
def test_latents_become_the_pipelines_frames(case: str, opened: Open) -> None:
    source, task = opened(case)
    latents, frames = pipeline_run(source, task)
    decoded = load_decoder(source)(unpacked(latents[-1], Conditioning()))
    assert frames.std() > 0.01
    torch.testing.assert_close(decoded, torch.from_numpy(frames).permute(0, 1, 4, 2, 3), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_our_loop_is_the_pipelines_own_latent_by_latent(case: str, opened: Open) -> None:
    source, task = opened(case)
    starter = open_starter(source, task, steps=STEPS)
    (ours,) = record_from(source.network, starter.process, list(starter.starts(2, 2, seed=11)))
    theirs, _ = pipeline_run(source, task)
    # Wan's pipeline calls its network twice a step; here the two predictions are one call, a batch of two
    rounded = 5e-6 if case.startswith("wan") else 0
    for after, expected in zip(ours.latents[1:], theirs, strict=True):
        torch.testing.assert_close(after, expected, rtol=0, atol=rounded)


@pytest.mark.slow
def test_the_guidance_of_wan_is_found(opened: Open) -> None:
    starter = open_starter(*opened("wan-euler"), steps=STEPS)
    assert isinstance(starter, PipelineStarter)
    assert (starter.guidance.kind, starter.guidance.scale) == ("conditional-first", 3.0)


@dataclass(frozen=True)
class Exported:
    source: Source
    task: Task
    recipe: Recipe
    folder: Path


@pytest.fixture(scope="module")
def exported(
    tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """Return a function that calibrates and exports a pipeline for videos of 5 frames, once."""
    made: dict[str, Exported] = {}

    def give(kind: str) -> Exported:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            source = load_source(tiny_text_pipeline(kind))
            task = Task(prompts=PROMPTS, image_size=SIDES.get(kind, 32), num_frames=5)
            recipe = calibrate(source, SETTINGS, output=folder / "recipe.safetensors", task=task)
            source = load_source(tiny_text_pipeline(kind), signature=recipe.signature)
            write_pipeline(source, recipe, folder / "out")
            made[kind] = Exported(source, task, recipe, folder / "out")
        return made[kind]

    return give


@pytest.mark.slow
@pytest.mark.parametrize("kind", VIDEOS)
def test_both_engines_in_the_pipeline_make_the_videos_of_the_simulation(
    kind: str, exported: Callable[[str], Exported]
) -> None:
    case, side = exported(kind), SIDES.get(kind, 32)
    pipe = open_pipeline(case.source, case.task)
    setattr(pipe, case.source.component, simulate(case.source.network, case.recipe))
    arguments = call_arguments(pipe, case.task, range(2), STEPS) | {"output_type": "np"}
    simulated = pictures_of(pipe(**arguments, generator=seeded_generators([9, 10])))
    for engine in ("openvino", "onnxruntime"):
        videos = sample_pipeline(case.folder, case.task, engine=engine, num_images=3, batch_size=2, seed=9)
        assert videos.shape == (3, 5, side, side, 3)
        assert np.square(videos[:2].astype(np.float64) - simulated).mean() < 10**-3.5, engine  # 35 dB
        assert videos.std() > 0.01
    report = verify(
        case.folder, case.source, task=case.task, num_images=2, steps=STEPS, features="none", layers=True,
        thresholds=Thresholds(min_psnr=15.0, max_fid=None, max_level_share=0.001),
    )  # fmt: skip
    assert report.passed, report.verdict
    assert report.model["image_shape"] == [5, 3, side, side]
    worst, whole = report.fidelity.worst_frame, report.fidelity.psnr
    assert all(one <= of_all for one, of_all in zip(worst, whole, strict=True))
    assert report.gallery.ratio == 5.0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_graph_of_wan_takes_another_size_and_another_number_of_frames(
    engine: str, exported: Callable[[str], Exported]
) -> None:
    case = exported("wan")
    other = Task(prompts=PROMPTS, image_size=(48, 32), num_frames=9)
    pipe = open_pipeline(case.source, other)
    setattr(pipe, case.source.component, simulate(case.source.network, case.recipe))
    arguments = call_arguments(pipe, other, range(1), STEPS) | {"output_type": "np"}
    simulated = pictures_of(pipe(**arguments, generator=seeded_generators([9])))
    videos = sample_pipeline(case.folder, other, engine=engine, num_images=1, seed=9)
    assert videos.shape == (1, 9, 32, 48, 3)
    assert np.square(videos.astype(np.float64) - simulated).mean() < 10**-3.5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino"])
def test_a_graph_of_ltx_refuses_another_number_of_frames(
    engine: str, exported: Callable[[str], Exported]
) -> None:
    case = exported("ltx")
    other = Task(prompts=PROMPTS, image_size=32, num_frames=9)
    with pytest.raises(UsageError, match=r"argument 'num_frames' of the network: got another value"):
        sample_pipeline(case.folder, other, engine=engine, num_images=1)


@pytest.mark.slow
def test_the_commands_write_videos_and_evaluate_only_what_compares_them(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    case = exported("wan-euler")
    samples = ["--num-images", "2", "--output-dir", str(tmp_path / "videos"), "--prompt", "a cat"]
    made = CliRunner().invoke(sample.command, [str(case.folder), *samples])
    assert made.exit_code == 0, made.output
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == ["00000.webp", "00001.webp", "grid.png"]
    with Image.open(tmp_path / "videos" / "00000.webp") as video:
        assert (video.n_frames, video.size) == (5, (32, 32))

    settings = EvaluationSettings(metrics=("psnr", "ssim"), num_images=2, batch_size=2)
    result = evaluate(case.folder, case.source, settings, task=case.task)
    assert {figure.metric for figure in result.figures} >= {"psnr", "ssim"}
    with pytest.raises(UsageError, match="--metrics fid2fp32: got videos of 5 frames"):
        evaluate(case.folder, case.source, replace(settings, metrics=("psnr", "fid2fp32")), task=case.task)


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.parametrize("kind", ["wan", "wan-per-token", "ltx"])
def test_tensorrt_compiles_the_network_with_its_layers_in_int8(
    kind: str, exported: Callable[[str], Exported]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    case = exported(kind)
    audit = audit_model(case.folder, Target(8, 9), batch_size=2).subject
    assert audit.not_understood == ()
    assert len({item.layer for item in audit.work if item.precision == "int8"}) == len(case.recipe.layers)
    assert audit.outcomes["float"] == 0
