"""Run a real pipeline up to its first steps and keep what it had prepared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.denoising.pasting import Pasting
from accuquant.denoising.process import seeded_generators
from accuquant.errors import CalibrationError
from accuquant.networks.call_form import value_at
from accuquant.networks.call_tensors import bound_arguments, tensors_of_call, undressed
from accuquant.networks.control_signature import CONTROLLED
from accuquant.networks.equivalents import EQUIVALENTS
from accuquant.networks.network import TIMESTEP
from accuquant.networks.padding import filled
from accuquant.networks.signature import Signature
from accuquant.pipelines.control_calls import ControlCalls
from accuquant.pipelines.diffusers_internals import copy_without, first_step, remembered, replaced


@dataclass
class Step:
    """The network's calls, as one batch, and the scheduler's step after them, as the pipeline made them."""

    sample: Tensor
    arguments: dict[str, Tensor]
    output: Tensor
    timestep: float = 0.0
    model_output: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Captured:
    """The first steps of a pipeline's run for N images.

    `scheduler` and `generators` are copies from just before the first of `steps`; `first` is the index of
    that step among the scheduler's timesteps (above 0 in image-to-image, by the strength). `pasting` is what
    an inpainting pipeline pastes between steps.
    """

    count: int
    scheduler: Any = None
    generators: tuple[Tensor, ...] = ()
    first: int = 0
    pasting: Pasting | None = None
    steps: list[Step] = field(default_factory=list)


class _EnoughSeen(BaseException):
    """Leaves the pipeline; no Exception, so that no pipeline catches it."""


class _Output(tuple[Tensor]):
    """A network's output, as pipelines read it: `output[0]` or `output.sample`."""

    @property
    def sample(self) -> Tensor:
        return self[0]


@torch.no_grad()
def capture(
    pipe: Any,
    component: str,
    arguments: Mapping[str, Any],
    seeds: range,
    *,
    signature: Signature,
    steps: int,
    real: bool,
    check: Callable[[Tensor], None] = lambda _sample: None,
) -> Captured:
    """Call `pipe` with `arguments` and a generator for each of `seeds`, and stop after `steps` steps.

    `signature` is the network's. With `real` the network runs; else it is spared and gives zeros, so that
    only the first step's input means anything. `check` is told the network's first
    sample before the network is called, and refuses one that it cannot take.
    """
    generators = seeded_generators(seeds)
    captured = Captured(len(seeds))
    recorder = _Recorder(pipe, getattr(pipe, component), captured, generators, signature, steps, real, check)
    with recorder.watching(), suppress(_EnoughSeen):
        pipe(**arguments, generator=generators)
    return captured


class _Recorder:
    def __init__(
        self,
        pipe: Any,
        network: nn.Module,
        captured: Captured,
        generators: list[torch.Generator],
        signature: Signature,
        steps: int,
        real: bool,
        check: Callable[[Tensor], None],
    ) -> None:
        self.pipe, self.network, self.captured = pipe, network, captured
        self.generators, self.signature, self.steps, self.real = generators, signature, steps, real
        known = EQUIVALENTS.get(signature.architecture)
        self.padded: Collection[str] = known.padded if known else ()
        # a pipeline that calls its network several times a step has these equal in all calls
        self.shared = {spec.name for spec in signature.conditioning if spec.shape[0] != "batch"}
        self.check = check
        self.controls = ControlCalls.of(pipe) if signature.architecture == CONTROLLED else None
        self.calls: list[Step] = []
        self.prepared: tuple[list[Any], list[Any]] = ([], [])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand in for the network's forward and the scheduler's step."""
        with (
            replaced(self.network, "forward", self._network_call),
            self.controls.watching(real=self.real) if self.controls else nullcontext(),
            replaced(self.pipe.scheduler, "step", self._scheduler_step),
            remembered(self.pipe, "prepare_latents") as latents,
            remembered(self.pipe, "prepare_mask_latents") as masks,
        ):
            self.prepared = latents, masks
            yield

    def _network_call(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        form = self.signature.call
        sample, given = self._read(
            bound_arguments(inspect.signature(forward), args, kwargs, self.signature.architecture)
        )
        if not self.captured.steps and not self.calls:
            self.check(sample)
            self._keep_beginning()
        if not self.real:
            output = self._zeros(sample)
        elif form is not None:
            output = undressed(value_at(forward(*args, **kwargs), form.output.path), form.output)
        else:
            output = forward(*args, **(kwargs | {"return_dict": False}))[0]
        self.calls.append(Step(sample, given, output))
        return _Output((output,)) if form is None else form.returned(output)

    def _read(self, bound: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sample and what conditions a call, by the names of the signature."""
        name, form = self.signature.sample.name, self.signature.call
        if form is not None:
            given = tensors_of_call(form, bound)
            del given[TIMESTEP]
            return given.pop(name), given
        if self.controls is not None:
            bound = self.controls.as_one_call(bound)
        sample = bound.pop(name)
        for known in (TIMESTEP, "return_dict"):
            bound.pop(known, None)
        return sample, _tensors(type(self.pipe).__name__, bound)

    def _zeros(self, sample: Tensor) -> Tensor:
        own = self.signature.sample.shape
        shape = [
            extent if isinstance(extent, int) else sample.shape[own.index(extent)]
            for extent in self.signature.output.shape
        ]
        return sample.new_zeros(shape)

    def _keep_beginning(self) -> None:
        captured = self.captured
        captured.scheduler = copy_without(self.pipe.scheduler, "step")  # that is ours
        captured.generators = tuple(g.get_state() for g in self.generators)
        captured.first = first_step(self.pipe, captured.scheduler.timesteps)
        captured.pasting = self._pasting()

    def _pasting(self) -> Pasting | None:
        """Return what the pipeline pastes: it prepares original and noise for nothing else."""
        latents, masks = self.prepared
        if not masks or len(latents[-1]) < 3:
            return None
        noise, original = latents[-1][1:3]
        mask = masks[-1][0][: self.captured.count]  # under guidance it is there twice
        return Pasting(mask, original, noise)

    def _scheduler_step(
        self, step: Any, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any
    ) -> Any:
        count = self.captured.count
        if "generator" in inspect.signature(step).parameters and len(sample) == count:
            kwargs.setdefault("generator", self.generators)  # some pipelines leave it to the global one
        result = step(model_output, timestep, sample, **kwargs)
        seen = _one_batch(_of_one_length(self.calls, self.padded), self.shared)
        self.calls = []
        self.captured.steps.append(seen)
        seen.timestep = float(timestep)
        # DiT carries every latent twice through the scheduler
        seen.model_output, seen.before, seen.after = model_output[:count], sample[:count], result[0][:count]
        if len(self.captured.steps) >= self.steps:
            raise _EnoughSeen
        return result


def _of_one_length(calls: list[Step], padded: Collection[str]) -> list[Step]:
    """Fill what has a mask up to the longest prompt of a step: behind the mask's ones is padding."""
    for name in padded:
        longest = max(call.arguments[name].shape[1] for call in calls)
        for call in calls:
            call.arguments[name] = filled(call.arguments[name], longest)
    return calls


def _one_batch(calls: list[Step], shared: Collection[str]) -> Step:
    """Join the calls of one step: Flux asks for the two predictions of its guidance one after the other."""
    if len(calls) == 1:
        return calls[0]
    lengths = [
        name
        for name, first in calls[0].arguments.items()
        if name not in shared and any(call.arguments[name].shape[1:] != first.shape[1:] for call in calls)
    ]
    if lengths:
        raise CalibrationError(
            "predictions of one step",
            got=f"{', '.join(lengths)} of several lengths",
            expected="one length for the prompt and the negative prompt: they are one batch here",
            remedy="Give a negative prompt of as many tokens, or sample without guidance",
        )
    arguments = {
        name: first if name in shared else torch.cat([call.arguments[name] for call in calls])
        for name, first in calls[0].arguments.items()
    }
    return Step(
        torch.cat([call.sample for call in calls]), arguments, torch.cat([call.output for call in calls])
    )


def _tensors(pipeline: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what conditions a call, by the names of the network's Signature."""
    flat = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
    flat.pop("added_cond_kwargs", None)
    given = {name: value for name, value in flat.items() if value is not None and value != {}}
    unknown = [name for name, value in given.items() if not isinstance(value, Tensor)]
    if unknown:
        raise CalibrationError(
            f"pipeline {pipeline}",
            got=f"{', '.join(unknown)}, which is no tensor, among the arguments of the network",
            expected="tensors alone",
            remedy="Switch this feature of the pipeline off",
        )
    return given
