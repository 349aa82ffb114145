"""Run a real pipeline up to its first steps and keep what it had prepared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.denoising.pasting import Pasting
from accuquant.denoising.process import seeded_generators
from accuquant.errors import CalibrationError
from accuquant.pipelines.diffusers_internals import copy_without, first_step, remembered, replaced

_SAMPLES = ("sample", "hidden_states")


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
    steps: int,
    real: bool,
    shared: Collection[str] = (),
    check: Callable[[Tensor], None] = lambda _sample: None,
) -> Captured:
    """Call `pipe` with `arguments` and a generator for each of `seeds`, and stop after `steps` steps.

    `shared` names the arguments of the network that have no row for each image: a pipeline that calls its
    network several times a step has them equal in all calls. With `real` the network runs; else it is spared
    and gives zeros, so that only the first step's input means anything. `check` is told the network's first
    sample before the network is called, and refuses one that it cannot take.
    """
    generators = seeded_generators(seeds)
    captured = Captured(len(seeds))
    recorder = _Recorder(pipe, getattr(pipe, component), captured, generators, steps, real, shared, check)
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
        steps: int,
        real: bool,
        shared: Collection[str],
        check: Callable[[Tensor], None],
    ) -> None:
        self.pipe, self.network, self.captured = pipe, network, captured
        self.generators, self.steps, self.real, self.shared = generators, steps, real, shared
        self.check = check
        self.calls: list[Step] = []
        self.prepared: tuple[list[Any], list[Any]] = ([], [])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand in for the network's forward and the scheduler's step."""
        with (
            replaced(self.network, "forward", self._network_call),
            replaced(self.pipe.scheduler, "step", self._scheduler_step),
            remembered(self.pipe, "prepare_latents") as latents,
            remembered(self.pipe, "prepare_mask_latents") as masks,
        ):
            self.prepared = latents, masks
            yield

    def _network_call(self, forward: Any, *args: Any, **kwargs: Any) -> _Output:
        bound = inspect.signature(forward).bind(*args, **kwargs).arguments
        name = next(name for name in _SAMPLES if name in bound)
        sample = bound.pop(name)
        for known in ("timestep", "return_dict"):
            bound.pop(known, None)
        if not self.captured.steps and not self.calls:
            self.check(sample)
            self._keep_beginning()
        if self.real:
            output: Tensor = forward(*args, **(kwargs | {"return_dict": False}))[0]
        else:
            output = self._zeros(sample)
        self.calls.append(Step(sample, _tensors(type(self.pipe).__name__, bound), output))
        return _Output((output,))

    def _zeros(self, sample: Tensor) -> Tensor:
        config: Any = self.network.config
        axis = -1 if sample.ndim == 3 else 1  # [B, patches, C] or [B, C, H, W]
        shape = list(sample.shape)
        shape[axis] = int(config.out_channels or shape[axis])
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
        seen = _one_batch(self.calls, self.shared)
        self.calls = []
        self.captured.steps.append(seen)
        seen.timestep = float(timestep)
        # DiT carries every latent twice through the scheduler
        seen.model_output, seen.before, seen.after = model_output[:count], sample[:count], result[0][:count]
        if len(self.captured.steps) >= self.steps:
            raise _EnoughSeen
        return result


def _one_batch(calls: list[Step], shared: Collection[str]) -> Step:
    """Join the calls of one step: Flux asks for the two predictions of its guidance one after the other."""
    if len(calls) == 1:
        return calls[0]
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
