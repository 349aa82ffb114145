import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.loop_profile import LoopProfile
from accuquant.runtime.sample import runs_without_torch, sample_images, to_images

UNET = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3}
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}


def reference(
    scheduler: Any, network: Callable[..., Any], seeds: list[int], steps: int, **given: Any
) -> np.ndarray:
    """Sample over the closed-form network with diffusers' scheduler, all seeds in one batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.cat([torch.randn((1, 3, 8, 8), generator=g) for g in generators])
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        output = torch.from_numpy(network(x.numpy(), int(timestep), **given))
        x = scheduler.step(output, timestep, x, generator=generators).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["DDIM", "DDPM"])
def test_image_k_comes_from_seed_plus_k_in_any_batch_size(
    engine: str, kind: str, make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    config = json.loads(scheduler.to_json_string())
    folder = make_folder(scheduler=config, pipeline=f"{kind}Pipeline")
    expected = reference(scheduler, network, [7, 8, 9, 10, 11], 6)
    for batch_size in (None, 2, 5):
        images = sample_images(folder, engine=engine, num_images=5, steps=6, seed=7, batch_size=batch_size)
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, expected, atol=1e-5)


def test_a_ddim_pipeline_turns_its_scheduler_into_ddim(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    folder = make_folder(scheduler=DDPM, pipeline="DDIMPipeline")
    images = sample_images(folder, num_images=2, steps=6)
    np.testing.assert_allclose(images, reference(diffusers.DDIMScheduler(), network, [0, 1], 6), atol=1e-5)


def test_the_calibrated_number_of_steps_is_the_default(make_folder: Callable[..., Any]) -> None:
    seen: list[int] = []
    sample_images(make_folder(), num_images=1, callback=lambda step, timestep, x: seen.append(timestep))
    assert seen == list(range(900, -1, -100))


def test_both_lowerings_sample_across_their_groups(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(lowering="per-group", gains=(0.5, 0.5))
    images = sample_images(folder, num_images=2, steps=6)
    with pytest.raises(FileExistsError):
        make_folder()
    assert images.shape == (2, 8, 8, 3)
    assert images.std() > 0.01


def test_the_callback_sees_every_latent_of_every_batch(make_folder: Callable[..., Any]) -> None:
    calls: list[tuple[int, int, np.ndarray]] = []
    ticks: list[tuple[int, int]] = []
    images = sample_images(
        make_folder(),
        num_images=3,
        steps=2,
        batch_size=2,
        callback=lambda *call: calls.append(call),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert [(step, timestep, len(x)) for step, timestep, x in calls] == [
        (0, 500, 2),
        (1, 0, 2),
        (0, 500, 1),
        (1, 0, 1),
    ]
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    last = np.concatenate([calls[1][2], calls[3][2]])
    np.testing.assert_array_equal(images, to_images(last))


def test_each_image_gets_its_class_label(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    folder = make_folder(labels=True)
    labels = [0, 1, 0]
    images = sample_images(folder, num_images=3, steps=4, batch_size=2, class_labels=labels)
    expected = reference(diffusers.DDIMScheduler(), network, [0, 1, 2], 4, labels=labels)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    with pytest.raises(UsageError, match="class labels: got 2 labels, expected 3"):
        sample_images(folder, num_images=3, steps=4, class_labels=[0, 1])


def test_labels_are_spread_evenly_where_none_are_chosen(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    folder = make_folder(labels=True, unet=UNET | {"num_class_embeds": 2})
    images = sample_images(folder, num_images=3, steps=4, batch_size=2)
    expected = reference(diffusers.DDIMScheduler(), network, [0, 1, 2], 4, labels=[0, 1, 0])
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "labels", "message"),
    [
        ({"labels": True}, [0, 2], r"got label 2, expected labels from 0 to 1"),
        ({"labels": True}, [-1, 0], r"got label -1, expected labels from 0 to 1"),
        ({"labels": True, "unet": UNET}, None, r"got none, expected one for each image.*--class-labels"),
        ({}, [0, 1], r"got labels 0, 1, expected none: this network takes no classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    make_folder: Callable[..., Any], folder: dict[str, Any], labels: list[int] | None, message: str
) -> None:
    exported = make_folder(**({"unet": UNET | {"num_class_embeds": 2}} | folder))
    with pytest.raises(UsageError, match=f"class labels: {message}"):
        sample_images(exported, num_images=2, steps=2, class_labels=labels)


def test_a_fixed_batch_takes_a_smaller_last_one_and_refuses_a_larger(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    folder = make_folder(batch=2)
    images = sample_images(folder, num_images=3, steps=2)
    expected = reference(diffusers.DDIMScheduler(), network, [0, 1, 2], 2)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    with pytest.raises(EngineError, match="Use batches of 2"):
        sample_images(folder, num_images=4, steps=2, batch_size=4)


def test_refuses_what_the_numpy_loop_does_not_drive(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(pipeline="LDMPipeline")
    with pytest.raises(UsageError, match=r"pipeline LDMPipeline.*EngineUNet\.from_pretrained"):
        sample_images(folder, num_images=1)


def test_refuses_another_scheduler_and_lists_those_it_has(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(scheduler={"_class_name": "PNDMScheduler"}, pipeline="DDPMPipeline")
    with pytest.raises(UsageError, match="got 'PNDMScheduler', expected one of DDIMScheduler, DDPMScheduler"):
        sample_images(folder, num_images=1)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({**DDPM, "num_train_timesteps": "many"}),
        json.dumps({**DDPM, "num_train_timesteps": 10**30}),
        json.dumps({**DDPM, "num_train_timesteps": {}}),
        json.dumps({**DDPM, "num_train_timesteps": 5}),  # fewer than were calibrated
        json.dumps({**DDPM, "beta_start": 10**400}),
        json.dumps({**DDPM, "beta_end": float("nan")}),
        json.dumps({**DDPM, "prediction_type": "hope"}),
        json.dumps({**DDPM, "beta_schedule": "cubic"}),
        json.dumps({**DDPM, "trained_betas": [0.1]}),
        json.dumps({**DDPM, "steps_offset": -7}),
    ],
)
def test_refuses_a_damaged_scheduler_configuration(make_folder: Callable[..., Any], content: str) -> None:
    folder: Path = make_folder()
    (folder / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(
        EngineError,
        match=r"scheduler configuration .*expected the JSON that diffusers writes|calibrated steps",
    ):
        sample_images(folder, num_images=1)


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--num-images", {"num_images": 0}),
        ("--batch-size", {"batch_size": 0}),
        ("number of steps", {"steps": 0}),
    ],
)
def test_refuses_counts_below_one(
    make_folder: Callable[..., Any], option: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=option):
        sample_images(make_folder(), **arguments)


def test_refuses_to_hand_out_images_that_are_not_finite() -> None:
    with pytest.raises(EngineError, match="not finite"):
        to_images(np.full((1, 1, 2, 2), np.nan, np.float32))


def test_a_choice_that_diffusers_alone_has_is_no_damage(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(scheduler={**DDPM, "variance_type": "learned_range"}, pipeline="DDPMPipeline")
    assert not runs_without_torch(folder, Manifest.load(folder))


def test_an_unknown_number_of_steps_is_asked_for(make_folder: Callable[..., Any]) -> None:
    folder: Path = make_folder()
    replace(Manifest.load(folder), num_inference_steps=None).save(folder)
    with pytest.raises(UsageError, match=r"number of steps: got none.*Give --steps 50"):
        sample_images(folder, num_images=1)
    assert sample_images(folder, num_images=1, steps=2).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("classes", ["many", 0, -1, 0.5, {}, 10**400])
def test_refuses_a_damaged_number_of_classes(make_folder: Callable[..., Any], classes: Any) -> None:
    folder = make_folder(labels=True, unet={**UNET, "num_class_embeds": classes})
    with pytest.raises(EngineError, match="num_class_embeds"):
        sample_images(folder, num_images=1, steps=2)


def test_a_profile_counts_every_call_and_changes_no_image(make_folder: Callable[..., Any]) -> None:
    """A clock that ticks once a question: parts that are entered more often have more of it."""
    ticks = iter(range(10**6))
    profile = LoopProfile(lambda: float(next(ticks)))
    folder = make_folder()
    images = sample_images(folder, num_images=3, steps=5, batch_size=2, profile=profile)
    profile.end()
    np.testing.assert_array_equal(images, sample_images(folder, num_images=3, steps=5, batch_size=2))
    assert profile.calls == {"scheduler": 2, "drop-in": 10, "network": 10}
    assert set(profile.seconds) == {"loading", "network", "drop-in", "scheduler", "rest"}
    assert profile.seconds["network"] == 10
