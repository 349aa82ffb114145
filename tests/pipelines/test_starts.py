"""Every supported pipeline: its own run against our loop from its start, latent by latent."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.loading_utils import load_image
from PIL import Image
from torch import Tensor

from accuquant.calibration.trajectory import record_from
from accuquant.denoising.conditioning import BoundNetwork, Conditioning
from accuquant.denoising.process import seeded_generators
from accuquant.denoising.start import Start
from accuquant.errors import CalibrationError, UsageError
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import PipelineStarter, open_starter
from accuquant.pipelines.task import Task

PROMPTS = ("a cat", "two dogs in a boat", "bird")
STEPS = 5
#: case -> pipeline of the fixture, what the task has beside prompts, scheduler in place of the saved one
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "text": ("sd", {}, None),
    "text-negative-prompt": ("sd", {"negative_prompt": "blurred", "guidance_scale": 3.0}, None),
    "text-without-guidance": ("sd", {"guidance_scale": 1.0}, None),
    "text-rescaled": ("sd", {"guidance_rescale": 0.7}, None),
    "text-larger": ("sd", {"image_size": 24}, None),
    "text-dpm": ("sd", {}, "DPMSolverMultistepScheduler"),
    "velocity": ("sd-v", {}, None),
    "velocity-euler": ("sd-v", {}, "EulerDiscreteScheduler"),
    "image": ("sd", {"images": True, "strength": 0.6}, None),
    "image-ddim": ("sd", {"images": True, "strength": 0.8}, "DDIMScheduler"),
    "image-heun": ("sd", {"images": True, "strength": 0.6}, "HeunDiscreteScheduler"),
    "image-unipc": ("sd", {"images": True, "strength": 0.6}, "UniPCMultistepScheduler"),
    "inpaint": ("inpaint", {"images": True, "masks": True}, None),
    "inpaint-euler-ancestral": (
        "inpaint",
        {"images": True, "masks": True, "strength": 0.7},
        "EulerAncestralDiscreteScheduler",
    ),
    "paste": ("sd", {"images": True, "masks": True}, None),
    "paste-strength-euler": (
        "sd",
        {"images": True, "masks": True, "strength": 0.7},
        "EulerDiscreteScheduler",
    ),
    "paste-ancestral": ("sd", {"images": True, "masks": True}, "EulerAncestralDiscreteScheduler"),
    "paste-heun": ("sd", {"images": True, "masks": True, "strength": 0.8}, "HeunDiscreteScheduler"),
    "paste-dpm": (
        "sd",
        {"images": True, "masks": True, "guidance_scale": 1.0},
        "DPMSolverMultistepScheduler",
    ),
    "xl-paste": ("sdxl", {"images": True, "masks": True}, None),
    "xl-paste-unipc": ("sdxl", {"images": True, "masks": True, "strength": 0.6}, "UniPCMultistepScheduler"),
    "edit": ("pix2pix", {"images": True}, None),
    "edit-image-scale": ("pix2pix", {"images": True, "image_guidance_scale": 2.0}, "DDIMScheduler"),
    "variation": ("variation", {"images": True}, None),
    "xl-edit": ("sdxl-pix2pix", {"images": True}, None),
    "lcm-image": ("lcm", {"images": True, "guidance_scale": 4.0, "strength": 0.8}, None),
    "ldm-text": ("ldm-text", {"guidance_scale": 5.0}, None),
    "ldm-text-without-guidance": ("ldm-text", {}, None),
    "super-resolution": ("super-resolution", {"images": True}, None),
    "class": ("dit", {}, None),
    "class-without-guidance": ("dit", {"guidance_scale": 1.0}, None),
    "pixart": ("pixart", {}, None),
    "pixart-alpha": ("pixart-alpha", {"negative_prompt": "blurred"}, None),
    "sd3": ("sd3", {}, None),
    "sd3-image": ("sd3", {"images": True}, None),
    "sd3-paste": ("sd3-wide", {"images": True, "masks": True, "strength": 0.8}, None),
    "flux": ("flux", {"image_size": (16, 24)}, None),
    "flux-true": (
        "flux",
        {"image_size": 16, "negative_prompt": "blurred", "true_cfg_scale": 3.0, "guidance_scale": 2.0},
        None,
    ),
    "flux-image": ("flux", {"image_size": (24, 16), "images": True}, None),
    "flux-image-true": (
        "flux",
        {"image_size": 16, "images": True, "negative_prompt": "blurred", "true_cfg_scale": 2.0},
        None,
    ),
    "flux-paste": ("flux", {"image_size": (24, 16), "images": True, "masks": True, "strength": 0.8}, None),
    "upscale": ("upscale", {"images": True}, None),
    "sd35": ("sd35", {}, None),
    "chroma": ("chroma", {"image_size": (16, 24)}, None),
    "chroma-without-guidance": ("chroma", {"image_size": 16, "guidance_scale": 1.0}, None),
    "aura-flow": ("aura-flow", {"image_size": (16, 24)}, None),
    "sana": ("sana", {"image_size": 32}, None),
    "lumina": ("lumina", {"image_size": 16}, None),
    "flux-fill": ("flux-fill", {"image_size": (24, 16), "images": True, "masks": True}, None),
    "kontext": ("flux-kontext", {"image_size": (24, 16), "images": True}, None),
    "kontext-without-image": ("flux-kontext", {"image_size": 16}, None),
    "flux2": ("flux2", {"image_size": (24, 16)}, None),
    "klein": ("flux2-klein", {"image_size": 16}, None),
    "klein-without-guidance": ("flux2-klein", {"image_size": 16, "guidance_scale": 1.0}, None),
    "qwen": ("qwen", {"image_size": (24, 16)}, None),
    "qwen-true": ("qwen", {"image_size": 16, "negative_prompt": "blurred", "true_cfg_scale": 4.0}, None),
    "qwen-edit": ("qwen-edit", {"images": True, "image_size": 256}, None),
    "zimage": ("zimage", {"image_size": (24, 16)}, None),
    "zimage-without-guidance": ("zimage", {"image_size": 16, "guidance_scale": 0.0}, None),
    "hunyuan-dit": ("hunyuan-dit", {"image_size": 64}, None),
    "lcm": ("lcm", {"guidance_scale": 4.0}, None),
    "xl": ("sdxl", {}, None),
    "xl-negative-prompt": ("sdxl", {"negative_prompt": "blurred"}, None),
    "xl-inpaint": ("sdxl-inpaint", {"images": True, "masks": True, "strength": 0.9}, None),
    "xl-image": ("sdxl", {"images": True, "strength": 0.5}, None),
    "xl-image-dpm": ("sdxl", {"images": True, "strength": 0.5}, "DPMSolverMultistepScheduler"),
    "control": ("control", {"control_images": 1}, None),
    "control-two": ("control-two", {"control_images": 2, "control_scale": (0.3, 1.7)}, None),
    "control-image": ("control", {"control_images": 1, "images": True, "strength": 0.6}, None),
    "control-paste": ("control", {"control_images": 1, "images": True, "masks": True}, None),
    "control-xl": ("control-sdxl", {"control_images": 1, "control_scale": (0.7,)}, None),
    "control-xl-image": ("control-sdxl", {"control_images": 1, "images": True}, None),
    "adapter": ("adapter", {"control_images": 1, "control_scale": (0.7,)}, None),
    "ip-adapter": ("ip-adapter", {"ip_adapter_images": 1}, None),
}


@pytest.fixture
def opened(
    tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> Callable[[str], tuple[Source, Task]]:
    def open_case(name: str) -> tuple[Source, Task]:
        kind, choices, scheduler = CASES[name]
        folder = tiny_text_pipeline(kind)
        source = load_source(folder, ip_adapters=list(map(str, folder.parent.glob("ip_adapter.safetensors"))))
        if scheduler is not None:
            cls = getattr(diffusers, scheduler)
            changes = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
            other = cls.from_config(source.scheduler.config, **changes)
            source = dataclasses.replace(source, scheduler=other)
        given = {key: picture_folder / key if value is True else value for key, value in choices.items()}
        several = {k: given.pop(k) for k in ("control_images", "ip_adapter_images") if k in given}
        texts = () if kind in ("dit", "super-resolution", "variation") else PROMPTS
        prompts = Task(prompts=texts, **{k: v for k, v in given.items() if not isinstance(v, Path)})
        folders: dict[str, Any] = {k: v for k, v in given.items() if isinstance(v, Path)}
        pictures = Task.read(**folders)
        folders = {k: [picture_folder / "images"] * int(str(count)) for k, count in several.items()}
        read = Task.read(**folders)
        pictured = {"images": pictures.images, "masks": pictures.masks}
        pictured |= {name: getattr(read, name) for name in several}
        return source, Task(**{**vars(prompts), **pictured})

    return open_case


def pipeline_run(source: Source, task: Task, members: range, seed: int) -> tuple[list[Tensor], list[float]]:
    """Run the real pipeline to its end; return its latents after every step, and the timesteps."""
    pipe = open_pipeline(source, task)
    seen: list[Tensor] = []
    timesteps: list[float] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def spy(model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        if seen:  # what the pipeline made of the step before
            seen[-1] = sample[: len(members)]
        result = step(model_output, timestep, sample, **kwargs)
        seen.append(result[0][: len(members)])  # DiT carries every latent twice
        timesteps.append(float(timestep))
        return result

    pipe.scheduler.step = spy
    arguments = call_arguments(pipe, task, members, STEPS)
    made = pipe(**arguments, generator=seeded_generators([seed + k for k in members]))
    del pipe.scheduler.step
    if isinstance(made.images, Tensor) and made.images.shape == seen[-1].shape:  # FLUX.2 [klein] unpacks them
        seen[-1] = made.images
    return seen, timesteps


#: One case for each pipeline class; the others show further choices and schedulers.
FAST = {
    "text", "velocity", "image", "inpaint", "paste", "edit", "ldm-text", "super-resolution", "class",
    "pixart", "sd3", "flux", "flux-true", "flux-paste", "upscale", "lcm", "xl", "xl-image-dpm", "xl-paste",
}  # fmt: skip
#: Two network calls a step are one with a batch of two here, or the timestep counts down: in another order.
ROUNDED = {"flux-true", "flux-image-true", "chroma", "lumina", "klein"}
#: Prompts are padded and masked here, and cut to their lengths there.
PADDED = {"qwen", "qwen-true", "qwen-edit", "zimage", "zimage-without-guidance"}
every_case = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES]
)


@every_case
def test_our_loop_is_the_pipelines_own_latent_by_latent(
    name: str, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened(name)
    source = called_source(source, task, STEPS)
    starter = open_starter(source, task, steps=STEPS)
    starts = list(starter.starts(3, 2, seed=11))
    assert [len(start) for start in starts] == [2, 1]
    ours = record_from(source.network, starter.process, starts)
    for batch, members in zip(ours, (range(0, 2), range(2, 3)), strict=True):
        theirs, timesteps = pipeline_run(source, task, members, 11)
        assert starter.process.timesteps == timesteps
        assert len(batch.latents) == len(theirs) + 1
        for after, expected in zip(batch.latents[1:], theirs, strict=True):
            atol = 1e-5 if name in PADDED else 2e-6 if name in ROUNDED else 0
            torch.testing.assert_close(after, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [
        ("text", "classifier-free", 7.5),
        ("text-without-guidance", "none", 1.0),
        ("edit", "image-and-text", 7.5),
        ("class", "conditional-first", 4.0),
        ("lcm", "embedded", 4.0),
        ("flux", "embedded", 3.5),
        ("flux-true", "conditional-first", 3.0),
        ("super-resolution", "none", 1.0),
    ],
)
def test_the_guidance_is_read_off_the_pipeline(
    name: str, kind: str, scale: float, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened(name)
    starter = open_starter(source, task, steps=3)
    assert isinstance(starter, PipelineStarter)
    assert (starter.guidance.kind, starter.guidance.scale) == (kind, scale)
    assert starter.guidance.learned_variance == (name == "class")
    assert starter.process.guidance == starter.guidance


def test_strength_moves_the_first_step(opened: Callable[[str], tuple[Source, Task]]) -> None:
    source, task = opened("image")
    everything = open_starter(source, dataclasses.replace(task, strength=1.0), steps=10).process
    half = open_starter(source, dataclasses.replace(task, strength=0.5), steps=10).process
    assert half.timesteps == everything.timesteps[-len(half) :]
    assert half.timesteps[0] < 510 < everything.timesteps[0]


def test_noise_alone_starts_an_unconditional_latent_pipeline(
    tiny_text_pipeline: Callable[[str], Path],
) -> None:
    source = load_source(tiny_text_pipeline("ldm"))
    starter = open_starter(source, Task(), steps=STEPS)
    (batch,) = record_from(source.network, starter.process, starter.starts(2, 2, seed=5))
    pipe = diffusers.DiffusionPipeline.from_pretrained(source.folder)
    pipe.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        seen.append(result.prev_sample)
        return result

    pipe.scheduler.step = spy
    pipe(batch_size=2, generator=seeded_generators([5, 6]), num_inference_steps=STEPS)
    for ours, theirs in zip(batch.latents[1:], seen, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("saved", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_ddim_pipeline_samples_with_ddim_whatever_scheduler_was_saved(
    saved: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    getattr(diffusers, saved)().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", saved]
    (folder / "model_index.json").write_text(json.dumps(index))
    source = load_source(folder)
    starter = open_starter(source, Task(), steps=STEPS)
    (batch,) = record_from(source.network, starter.process, starter.starts(2, 2, seed=5))
    pipe = diffusers.DDIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        batch_size=2, generator=seeded_generators([5, 6]), num_inference_steps=STEPS, output_type="np"
    )
    ours = (batch.latents[-1] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, made.images, atol=1e-5)


def test_a_pipeline_that_changes_latents_between_steps_is_refused(
    opened: Callable[[str], tuple[Source, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inpainting with a 4-channel UNet would be, did we not know that it pastes."""
    source, task = opened("paste")
    monkeypatch.setattr("accuquant.pipelines.capture._Recorder._pasting", lambda _recorder: None)
    with pytest.raises(
        CalibrationError,
        match=r"pipeline StableDiffusionInpaintPipeline: got the input of network call 2 differ",
    ):
        open_starter(source, task, steps=STEPS)


def test_a_step_of_pasting_errs_only_where_the_network_paints(
    opened: Callable[[str], tuple[Source, Task]],
) -> None:
    source, task = opened("paste")
    starter = open_starter(source, task, steps=STEPS)
    (batch,) = record_from(source.network, starter.process, starter.starts(2, 2, seed=11))
    pasting = batch.conditioning.pasting
    assert pasting is not None
    painted = pasting.mask.expand_as(batch.latents[0]).bool()
    assert 0.2 < painted.float().mean() < 0.9
    step, offset = 2, torch.tensor(0.1, requires_grad=True)
    generators = starter.process.restore_state(batch.states[step])
    network = batch.bind(source.network)
    assert isinstance(network, BoundNetwork)
    moved = dataclasses.replace(network, predict=lambda x, t: network.predict(x, t) + offset)
    after = starter.process.step(moved, batch.latents[step], step, generators)
    difference = (after - batch.latents[step + 1]).detach()
    assert torch.equal(difference[~painted], torch.zeros_like(difference[~painted]))
    assert difference[painted].abs().min() > 0
    (gradient,) = torch.autograd.grad((after * ~painted).sum(), offset, retain_graph=True)
    assert gradient == 0
    assert torch.autograd.grad(after.sum(), offset)[0] != 0


@pytest.mark.parametrize("name", ["text", "paste", "edit"])
def test_a_start_is_the_same_whichever_were_made_before(
    name: str, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened(name)
    starter = open_starter(source, task, steps=STEPS)
    first, second = starter.starts(3, 2, seed=11)
    for members, start in ((range(2, 3), second), (range(2), first)):
        flat, again = start.to_tensors(), starter.start(members, seed=11).to_tensors()
        assert flat.keys() == again.keys()
        assert all(torch.equal(tensor, again[key]) for key, tensor in flat.items())
        read = Start.from_tensors(flat).to_tensors()
        assert all(torch.equal(tensor, read[key]) for key, tensor in flat.items())


def test_a_start_from_noise_is_the_same_whichever_were_made_before(tiny_source: Source) -> None:
    starter = open_starter(tiny_source, Task(), steps=STEPS)
    first, second = starter.starts(3, 2, seed=11)
    for members, start in ((range(2, 3), second), (range(2), first)):
        again = starter.start(members, seed=11).to_tensors()
        assert all(torch.equal(tensor, again[key]) for key, tensor in start.to_tensors().items())


def test_the_pasted_tensors_survive_the_work_folder(
    opened: Callable[[str], tuple[Source, Task]],
) -> None:
    source, task = opened("paste")
    (start,) = open_starter(source, task, steps=STEPS).starts(2, 2, seed=11)
    flat = start.conditioning.to_tensors()
    again = Conditioning.from_tensors(flat).pasting
    first = start.conditioning.rows(slice(0, 1)).pasting
    assert again is not None
    assert first is not None
    assert start.conditioning.pasting is not None
    for name, tensor in start.conditioning.pasting.to_tensors().items():
        assert torch.equal(getattr(again, name), tensor)
        assert torch.equal(getattr(first, name), tensor[:1])
    assert Conditioning.from_tensors({"tensors.x": torch.ones(1, 1)}).pasting is None


@pytest.mark.parametrize("name", ["NoSuchPipeline", "DDIMScheduler", "load_image"])
def test_a_name_that_is_no_pipeline_of_diffusers_is_refused(
    name: str, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened("text")
    other = dataclasses.replace(source, pipeline_class=name)
    with pytest.raises(CalibrationError, match=rf"pipeline {name}: .*a pipeline of diffusers"):
        open_starter(other, task, steps=STEPS)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text", {"prompts": ()}, r"pipeline StableDiffusionPipeline: got no prompts.*Give --prompts"),
        ("inpaint", {"masks": ()}, r"StableDiffusionInpaintPipeline: got no masks.*Give --masks"),
        ("edit", {"images": ()}, r"got no images.*Give --images"),
        ("text", {"strength": 0.5}, r"--strength: .*StableDiffusionPipeline does not take it"),
        ("class", {"prompts": ("a",)}, r"--prompts: .*DiTPipeline does not take it"),
        ("xl-edit", {"guidance_rescale": 0.7}, r"--guidance-rescale: got 0.7, .*XLInstructPix2PixPipeline"),
        ("flux", {"true_cfg_scale": 4.0}, r"--true-cfg-scale: got 4 without a .*Give --negative-prompt"),
        ("xl-image", {"strength": 0.02}, r"got a strength at which no step is left, .*Raise --strength or"),
        ("inpaint", {"strength": 0.02}, r"pipeline StableDiffusionInpaintPipeline: got After adjusting the"),
        ("text", {"image_size": 10}, r"pipeline StableDiffusionPipeline: got .*divisible by 8"),
    ],
)
def test_a_task_that_does_not_fit_is_one_clear_line(
    name: str, changes: dict[str, Any], message: str, opened: Callable[[str], tuple[Source, Task]]
) -> None:
    source, task = opened(name)
    with pytest.raises(UsageError, match=message):
        open_starter(source, dataclasses.replace(task, **changes), steps=STEPS)


def test_a_scheduler_that_the_pixel_pipelines_cannot_run_is_refused(tiny_source: Source) -> None:
    euler = dataclasses.replace(tiny_source, scheduler=diffusers.EulerDiscreteScheduler())
    with pytest.raises(CalibrationError, match=r"DDIMPipeline, scheduler EulerDiscreteScheduler: .*scaled"):
        open_starter(euler, Task(), steps=3)
    solver = dataclasses.replace(tiny_source, scheduler=diffusers.DPMSolverMultistepScheduler())
    assert len(open_starter(solver, Task(), steps=3).process) == 3


def test_a_pixel_pipeline_takes_no_prompts(tiny_source: Source) -> None:
    with pytest.raises(UsageError, match=r"--prompts: got a choice, .*starts from seeds alone"):
        open_starter(tiny_source, Task(prompts=("a",)), steps=3)


def test_a_file_that_is_no_image_is_named(
    opened: Callable[[str], tuple[Source, Task]], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    source, task = opened("edit")
    with pytest.raises(UsageError, match=r"image '.*broken.png': got UnidentifiedImageError"):
        open_starter(source, dataclasses.replace(task, images=(str(tmp_path / "broken.png"),)), steps=3)


def test_an_image_that_is_too_large_is_named(
    opened: Callable[[str], tuple[Source, Task]], picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source, task = opened("edit")
    with pytest.raises(UsageError, match=r"image '.*0.png': got DecompressionBombError: .*exceeds limit"):
        open_starter(source, task, steps=3)


def test_a_photo_is_turned_as_its_camera_was_held(
    opened: Callable[[str], tuple[Source, Task]], tmp_path: Path
) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left, which is above once it is turned by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    source, task = opened("edit")
    turned = dataclasses.replace(task, images=(str(tmp_path / "turned.png"),))
    (image,) = call_arguments(open_pipeline(source, turned), turned, range(1), 2)["image"]
    ours, theirs = np.asarray(image), np.asarray(load_image(str(tmp_path / "turned.png")))
    np.testing.assert_array_equal(ours, theirs)
    assert ours[0].min() == 255


def test_the_network_and_the_scheduler_are_left_as_they_were(
    opened: Callable[[str], tuple[Source, Task]],
) -> None:
    source, task = opened("text")
    list(open_starter(source, task, steps=3).starts(1, 1, seed=0))
    assert "forward" not in vars(source.network)
    assert "step" not in vars(source.scheduler)
