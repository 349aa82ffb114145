"""Measure where the seconds of a diffusers pipeline go, whatever runs its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from accuquant.pipelines.diffusers_internals import replaced
from accuquant.runtime.engine_part import EnginePart, engine_of
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.loop_profile import LoopProfile, Part

_NETWORKS = ("unet", "transformer")
_AUTOENCODERS = ("vae", "vqvae")
#: What a scheduler does beside its step.
_SCHEDULING = ("scale_model_input", "add_noise", "scale_noise")
_Count = Callable[[], AbstractContextManager[None]]


@contextmanager
def profiled(pipe: Any, profile: LoopProfile | None = None) -> Iterator[LoopProfile]:
    """Count where the seconds of calls of `pipe`, a diffusers pipeline, go inside the block.

        pipe.unet = accuquant.EngineUNet.from_pretrained("out")
        with accuquant.profiled(pipe) as profile:
            pipe("a boat at sea", num_inference_steps=25)
        print(profile.seconds, profile.overhead)

    It goes on with `profile` where one is given. What the block does beside calls is "rest". On a GPU every
    part waits for its kernels, so that a call takes longer than it does unmeasured.
    """
    found = profile or LoopProfile(_clock(pipe))
    with ExitStack() as stack:
        for owner, name, count in _watched(pipe, found):
            stack.enter_context(replaced(owner, name, _counting(count)))
        for engine in _engines(pipe):
            stack.callback(setattr, engine, "profile", engine.profile)
            engine.profile = found
        if encoders := _text_encoders(pipe):
            found.ran_by["text encoder"] = engine_of(encoders[0]) or "torch"
        if decoders := _autoencoders(pipe):
            found.ran_by["decoder"] = engine_of(decoders[0]) or "torch"
        yield found
    if profile is None:
        found.end()


def _watched(pipe: Any, profile: LoopProfile) -> Iterator[tuple[Any, str, _Count]]:
    """Yield the methods of a pipeline's parts that are counted, and as what."""

    def inside(part: Part) -> _Count:
        return lambda: profile.inside(part)

    network = _network(pipe)
    yield (
        network,
        "forward",
        lambda: profile.calling("drop-in" if isinstance(network, EngineUNet) else "network"),
    )

    def beginning() -> AbstractContextManager[None]:
        profile.settle()
        return profile.inside("scheduler")

    yield pipe.scheduler, "set_timesteps", beginning
    yield pipe.scheduler, "step", profile.stepping
    for name in _SCHEDULING:
        if hasattr(pipe.scheduler, name):
            yield pipe.scheduler, name, inside("scheduler")
    if hasattr(pipe, "encode_prompt"):
        yield pipe, "encode_prompt", inside("text encoder")
    else:
        for encoder in _text_encoders(pipe):
            yield encoder, "forward", inside("text encoder")
    if getattr(pipe, "image_encoder", None) is not None:
        yield pipe.image_encoder, "forward", inside("image encoder")
    for vae in _autoencoders(pipe):
        yield vae, "decode", inside("decoder")
        yield vae, "encode", inside("image encoder")


def _engines(pipe: Any) -> list[Any]:
    """Return what counts loading and calls by itself."""
    network = _network(pipe)
    engines = [network.engine_model] if isinstance(network, EngineUNet) else []
    return [*engines, *(part for part in pipe.components.values() if isinstance(part, EnginePart))]


def _counting(count: _Count) -> Callable[..., Any]:
    def stand_in(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with count():
            return method(*args, **kwargs)

    return stand_in


def _clock(pipe: Any) -> Callable[[], float]:
    """Return a clock that waits for the GPU's kernels where the pipeline is on one."""
    if pipe.device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(pipe.device)
        return time.perf_counter()

    return now


def _network(pipe: Any) -> Any:
    return next(part for name in _NETWORKS if (part := getattr(pipe, name, None)) is not None)


def _text_encoders(pipe: Any) -> list[Any]:
    parts = [
        part for name, part in pipe.components.items() if name.startswith("text_encoder") or name == "bert"
    ]
    return [part for part in parts if part is not None]


def _autoencoders(pipe: Any) -> list[Any]:
    return [part for name in _AUTOENCODERS if (part := getattr(pipe, name, None)) is not None]
