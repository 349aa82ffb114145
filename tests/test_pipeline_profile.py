"""The parts of a real diffusers pipeline, on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import pytest
from tiny_pipelines import PIPELINES

from accuquant.pipeline_profile import profiled
from accuquant.pipelines.diffusers_internals import replaced
from accuquant.runtime.loop_profile import LoopProfile

CALL = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np", "height": 16, "width": 16}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    class_name, parts = PIPELINES["sd"](tmp_path_factory.mktemp("sd"))
    found = getattr(diffusers, class_name)(
        **parts | {"scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)}
    )
    found.set_progress_bar_config(disable=True)
    return found


def taking(seconds: float, clock: list[float]) -> Callable[..., Any]:
    def stand_in(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        clock[0] += seconds
        return method(*args, **kwargs)

    return stand_in


def call(pipe: Any, profile: LoopProfile, clock: list[float]) -> None:
    """Call the pipeline twice whose parts take seconds that tell them apart."""
    with ExitStack() as stack:
        for owner, name, seconds in (
            (pipe.text_encoder, "forward", 1.0),
            (pipe.unet, "forward", 10.0),
            (pipe.scheduler, "step", 100.0),
            (pipe.scheduler, "set_timesteps", 1e3),
            (pipe.vae, "decode", 1e4),
            (pipe.image_processor, "postprocess", 1e5),
        ):
            stack.enter_context(replaced(owner, name, taking(seconds, clock)))
        with profiled(pipe, profile):
            for _ in range(2):
                pipe(["a cat"], **CALL)


def test_each_part_of_a_call_is_counted_as_what_it_is(pipe: Any) -> None:
    clock = [0.0]
    profile = LoopProfile(lambda: clock[0])
    call(pipe, profile, clock)
    assert profile.seconds == {
        "text encoder": 4.0, "network": 60.0, "scheduler": 2600.0, "decoder": 2e4, "rest": 2e5,
    }  # fmt: skip
    assert profile.calls["network"] == 6
    assert profile.ran_by == {"text encoder": "torch", "decoder": "torch"}
    assert profile.overhead == 2600 / 60


def test_a_pipeline_is_afterwards_what_it_was(pipe: Any) -> None:
    clock = [0.0]
    with profiled(pipe) as profile:
        pass
    ended = profile.seconds
    assert not any("forward" in vars(part) for part in (pipe.unet, pipe.text_encoder))
    assert "step" not in vars(pipe.scheduler)
    assert "encode_prompt" not in vars(pipe)
    assert profile.seconds == ended
    assert clock == [0.0]


def test_one_stand_in_inside_another_leaves_the_outer_one(pipe: Any, tmp_path: Path) -> None:
    seen: list[str] = []

    def named(name: str) -> Callable[..., Any]:
        def stand_in(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return method(*args, **kwargs)

        return stand_in

    with replaced(pipe.scheduler, "scale_model_input", named("outer")):
        with replaced(pipe.scheduler, "scale_model_input", named("inner")):
            pipe.scheduler.scale_model_input(0)
        pipe.scheduler.scale_model_input(0)
    pipe.scheduler.scale_model_input(0)
    assert seen == ["inner", "outer", "outer"]
