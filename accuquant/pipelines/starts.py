"""Starts for any supported pipeline: what its own code prepares, taken over just before the first step.

The pipelines of diffusers encode prompts and images, choose timesteps and draw noise in their own ways.
None of that is written again here: the real pipeline runs until it first calls its network, and AccuQuant's
loop takes over. For one image the first two steps run in the pipeline to their end, and the simulation has
to reproduce them: a pipeline that does anything else around its network is refused, and not quantized for
another sampler than the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from accuquant._util.progress import Progress, Silent
from accuquant.denoising.conditioning import BoundNetwork, Conditioning
from accuquant.denoising.guidance import Guidance
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start, seeded_start, seeded_starts
from accuquant.errors import CalibrationError, UsageError
from accuquant.networks.device import CPU, device_of
from accuquant.networks.image_sides import check_sample
from accuquant.pipelines.capture import Captured, capture
from accuquant.pipelines.families import (
    FAMILIES,
    SEEDED,
    call_arguments,
    default_of,
    family_of,
    no_step_left,
    refusals_of,
)
from accuquant.pipelines.found_guidance import behind, further_axis, guidance_of
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task, option

#: Inputs of a network that carry the guidance scale.
_EMBEDDED = ("timestep_cond", "guidance")
_CHECKED_STEPS = 2
#: Of a pipeline that is not written down, a step late in the loop may be another one.
_EVERY_STEP = 10_000
_UNSCALED = ("DDIMPipeline", "DDPMPipeline")


class Starter(Protocol):
    """The sampler that the user samples with, and a source of trajectories that are about to begin."""

    @property
    def process(self) -> DenoisingProcess:
        """The sampler."""

    def starts(
        self, count: int, batch_size: int, *, seed: int, progress: Progress | None = None
    ) -> Iterator[Start]:
        """Yield batches of starts; image k comes from seed + k and takes prompt k."""

    def start(self, members: range, *, seed: int) -> Start:
        """Return the start of some images: the same, whichever others were started before."""

    def close(self) -> None:
        """Free what starts are made with; the process stays."""


def open_starter(
    source: Source, task: Task, *, steps: int, given: Mapping[str, Any] | None = None
) -> Starter:
    """Return what starts trajectories of `source` at `steps` inference steps.

    `given` are parts of the pipeline that are there already, by its names.
    Raises CalibrationError for a pipeline or a scheduler that is not simulated, UsageError for a task that
    does not fit the pipeline.
    """
    if from_noise_alone(source):
        return NoiseStarter(source, task, steps)
    return PipelineStarter(source, task, steps, given)


class NoiseStarter:
    """Starts from noise, one seed an image, with class labels spread evenly where the network takes them."""

    def __init__(self, source: Source, task: Task, steps: int) -> None:
        if task.given():
            raise UsageError(
                ", ".join(map(option, task.given())),
                got="a choice",
                expected=f"none: '{source.name}' starts from seeds alone",
                remedy="Leave it out",
            )
        self.process = DenoisingProcess(source.scheduler, steps)
        self._source = source
        class_labels(source, 1)
        _check_scaling(source, self.process)

    def starts(
        self, count: int, batch_size: int, *, seed: int, progress: Progress | None = None
    ) -> Iterator[Start]:
        """Yield batches of starts; image k comes from seed + k."""
        signature = self._source.signature
        return seeded_starts(
            self.process,
            signature.sample.resolve(signature.sizes | {"batch": 1})[1:],
            count=count,
            batch_size=batch_size,
            seed=seed,
            conditioning=class_labels(self._source, count),
        )

    def start(self, members: range, *, seed: int) -> Start:
        """Return the start of some images."""
        signature = self._source.signature
        shape = signature.sample.resolve(signature.sizes | {"batch": 1})[1:]
        labels = class_labels(self._source, members.stop)
        return seeded_start(self.process, shape, members, seed=seed, conditioning=labels)

    def close(self) -> None:
        """Do nothing: seeds take no memory."""


@dataclass(frozen=True)
class GivenStarter:
    """Starts from noise [*shape] with the `conditioning` [count, ...] of a network without its pipeline."""

    process: DenoisingProcess
    shape: tuple[int, ...]
    conditioning: Mapping[str, Tensor]

    def starts(
        self, count: int, batch_size: int, *, seed: int, progress: Progress | None = None
    ) -> Iterator[Start]:
        """Yield batches of starts; image k comes from seed + k and takes row k."""
        for first in range(0, count, batch_size):
            yield self.start(range(first, min(first + batch_size, count)), seed=seed)

    def start(self, members: range, *, seed: int) -> Start:
        """Return the start of some images."""
        return seeded_start(self.process, self.shape, members, seed=seed, conditioning=self.conditioning)

    def close(self) -> None:
        """Do nothing: what is given stays."""


class PipelineStarter:
    """Starts that the real pipeline prepares. Close it to free the text encoders."""

    def __init__(
        self, source: Source, task: Task, steps: int, given: Mapping[str, Any] | None = None
    ) -> None:
        self._source, self._task, self._steps = source, task, steps
        self._pipe: Any = open_pipeline(source, task, device_of(source.network), given=given)
        captured = self._capture(range(1), 0, real=True)
        self.guidance = _guidance(self._pipe, task, captured)
        self.process = DenoisingProcess.prepared(captured.scheduler, captured.first, self.guidance)
        start = _start(source, captured, self.guidance)
        _check(type(self._pipe).__name__, self.process, start, captured)
        self.process.reset()

    def starts(
        self, count: int, batch_size: int, *, seed: int, progress: Progress | None = None
    ) -> Iterator[Start]:
        """Yield batches of starts; image k comes from seed + k and takes prompt k."""
        shown = progress or Silent()
        shown.stage("prompts and first latents", -(-count // batch_size))
        for first in range(0, count, batch_size):
            members = range(first, min(first + batch_size, count))
            captured = self._capture(members, seed, real=False)
            shown.advance()
            yield _start(self._source, captured, self.guidance).to(CPU)

    def start(self, members: range, *, seed: int) -> Start:
        """Return the start of some images."""
        return _start(self._source, self._capture(members, seed, real=False), self.guidance).to(CPU)

    def close(self) -> None:
        """Free the text encoders and the decoder."""
        self._pipe = None

    def _capture(self, members: range, seed: int, *, real: bool) -> Captured:
        arguments = call_arguments(self._pipe, self._task, members, self._steps)
        seeds = range(seed + members.start, seed + members.stop)
        known = family_of(type(self._pipe).__name__).known
        steps = 1 if not real else _CHECKED_STEPS if known else _EVERY_STEP
        config: Any = self._source.network.config
        signature = self._source.signature
        with refusals_of(self._pipe):
            captured = capture(
                self._pipe,
                self._source.component,
                arguments,
                seeds,
                signature=signature,
                steps=steps,
                real=real,
                check=lambda sample: check_sample(signature, config, sample.shape),
            )
        if not captured.steps:
            raise no_step_left(self._pipe)
        return captured


def from_noise_alone(source: Source) -> bool:
    """Say whether trajectories of `source` begin with noise, and at most a class label."""
    names = [spec.name for spec in source.signature.conditioning]
    return source.pipeline_class in SEEDED or (
        source.pipeline_class not in FAMILIES
        and source.signature.call is None
        and names in ([], ["class_labels"])
    )


def class_labels(source: Source, count: int) -> dict[str, Tensor]:
    """Return what conditions each of `count` images of a pipeline without prompts: labels, evenly spread."""
    names = [spec.name for spec in source.signature.conditioning]
    if not names:
        return {}
    classes = getattr(source.network.config, "num_class_embeds", None)
    if names != ["class_labels"] or classes is None:
        raise CalibrationError(
            f"pipeline '{source.name}'",
            got=f"a network that takes {', '.join(names)}",
            expected=f"an unconditional or a class-conditional network in a {source.pipeline_class}",
            remedy="To add a pipeline, see docs/pipelines.md",
        )
    return {"class_labels": torch.arange(count) % int(classes)}


def _check_scaling(source: Source, process: DenoisingProcess) -> None:
    """Refuse a scheduler that needs scaled inputs in a pipeline of diffusers that does not scale them."""
    if source.pipeline_class in _UNSCALED and float(getattr(process.scheduler, "init_noise_sigma", 1)) != 1:
        raise CalibrationError(
            f"pipeline {source.pipeline_class}, scheduler {type(process.scheduler).__name__}",
            got="a scheduler that works on scaled latents, in a pipeline that does not scale them",
            expected="a scheduler that starts from noise of deviation 1, such as DDIMScheduler",
            remedy="pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config), then save it",
        )


def _guidance(pipe: Any, task: Task, captured: Captured) -> Guidance:
    """Read off the first step how the pipeline guides."""
    seen = captured.steps[0]
    copies = len(seen.sample) // captured.count
    family = family_of(type(pipe).__name__)
    if not family.known:
        return guidance_of(pipe, task, captured)
    kind, scale = family.guidance, family.scale
    if copies == 1:
        kind = "embedded" if set(_EMBEDDED) & set(seen.arguments) else "none"
        scale = "guidance_scale"
    elif Guidance(kind).copies != copies:
        raise CalibrationError(
            f"pipeline {type(pipe).__name__}",
            got=f"{copies} predictions a step",
            expected=f"{Guidance(kind).copies}, for {kind} guidance, or 1 without",
            remedy="Sample with another guidance scale. To add a kind of guidance, see docs/pipelines.md",
        )

    def chosen(name: str, otherwise: float) -> float:
        value = getattr(task, name)
        return default_of(pipe, name, otherwise) if value is None else float(value)

    return Guidance(
        kind=kind,
        scale=chosen(scale, 1.0) if kind != "none" else 1.0,
        image_scale=chosen("image_guidance_scale", 1.0) if kind == "image-and-text" else 1.0,
        rescale=chosen("guidance_rescale", 0.0) if kind == "classifier-free" else 0.0,
        learned_variance=seen.model_output.shape[1] < seen.output.shape[1],
    )


def _start(source: Source, captured: Captured, guidance: Guidance) -> Start:
    seen = captured.steps[0]
    batched = {spec.name: spec.shape[0] == "batch" for spec in source.signature.conditioning}
    rows = {
        len(seen.sample),
        *(len(tensor) for name, tensor in seen.arguments.items() if batched.get(name, True)),
    }
    if sorted(seen.arguments) != sorted(batched) or rows != {guidance.copies * captured.count}:
        raise CalibrationError(
            f"pipeline {source.pipeline_class}",
            got=f"a network called with {', '.join(seen.arguments) or 'nothing'} (rows: {sorted(rows)})",
            expected=f"{', '.join(batched) or 'nothing'}, with one row for each prediction",
            remedy="Switch off what the pipeline adds. To add it to AccuQuant, see docs/pipelines.md",
        )
    axis = further_axis(seen)
    channels = None if axis is None else behind(seen.sample, seen.before.shape[axis], axis)
    # in the order of the Signature, which is that of the exported graph
    rowed = {name: seen.arguments[name] for name, has_rows in batched.items() if has_rows}
    shared = {name: seen.arguments[name] for name, has_rows in batched.items() if not has_rows}
    conditioning = Conditioning.from_batch(
        rowed, channels, guidance.copies, shared, captured.pasting, axis or 1
    )
    return Start(seen.before.clone(), captured.generators, conditioning)


def _check(name: str, process: DenoisingProcess, start: Start, captured: Captured) -> None:
    """Raise CalibrationError unless the simulated steps are those that the pipeline has made."""
    generators, latents = start.fresh_generators(), start.latents
    pasting = start.conditioning.pasting
    for index, seen in enumerate(captured.steps):
        number = index + 1
        constant = all(
            torch.equal(seen.arguments[key], value) for key, value in captured.steps[0].arguments.items()
        )
        _agree(name, f"the arguments of network call {number}", constant)
        _agree(name, f"the timestep of step {number}", process.timesteps[index] == float(seen.timestep))

        def replay(sample: Tensor, _timestep: Tensor, seen: Any = seen, number: int = number) -> Tensor:
            given = start.conditioning.append_channels(sample)
            _agree(name, f"the input of network call {number}", _close(given, seen.sample))
            output: Tensor = seen.output
            return output

        latents = process.step(BoundNetwork(replay, pasting), latents, index, generators)
        # what is pasted shows in the input of the next network call
        kept = 1.0 if pasting is None else pasting.mask
        _agree(name, f"the latents after step {number}", _close(kept * latents, kept * seen.after))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5))


def _agree(name: str, what: str, equal: bool) -> None:
    if not equal:
        raise CalibrationError(
            f"pipeline {name}",
            got=f"{what} differ from the simulated ones",
            expected="a loop in which only the scheduler and the guidance stand around the network",
            remedy="Switch off what else the pipeline does between steps. To add it, see docs/pipelines.md",
        )
