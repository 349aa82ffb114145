"""Run a real pipeline to its network's first calls, where the network's class has no entry, and read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from accuquant.denoising.process import seeded_generators
from accuquant.errors import CalibrationError, SourceError
from accuquant.networks.call_form import is_tensor, value_at
from accuquant.networks.call_tensors import bound_arguments, tensors_of_call, undressed
from accuquant.networks.device import device_of
from accuquant.networks.equivalents import EQUIVALENTS, fixed_shapes
from accuquant.networks.network import TIMESTEP
from accuquant.networks.padding import MULTIPLE, filled
from accuquant.networks.signature import Signature, Uncaptured
from accuquant.pipelines.diffusers_internals import replaced
from accuquant.pipelines.families import (
    call_arguments,
    frames_of,
    no_step_left,
    pixels,
    refusals_of,
    sides_can_be_chosen,
)
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.seen_signature import BATCH, SIZE, TOKENS, Arguments, SeenStep, read_signature_off
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task

_STEPS = 3
#: The image's sides in the run of another size, and how often the prompt is said in that of another length.
_SIDES, _TIMES = (3, 2), 3
#: An image's sides where the pipeline does not tell its own: multiples of what any autoencoder asks for.
_SOME = (128, 128)
#: So many frames behind twice as many: another number in every autoencoder, which makes one of 4 to 16.
_MORE_FRAMES = 15


class _EnoughSeen(BaseException):
    """Leaves the pipeline; no Exception, so that no pipeline catches it."""


def called_source(source: Source, task: Task, steps: int) -> Source:
    """Return `source` with its network's signature: read off the pipeline's calls where no entry knows it.

    Raises SourceError that names what no fixed graph can have, UsageError for a task that does not fit.
    """
    if not isinstance(source.signature, Uncaptured):
        return source
    return source.called_as(captured_signature(source, task, steps))


def captured_signature(source: Source, task: Task, steps: int) -> Signature:
    """Return the signature that the calls of a pipeline show, whether an entry knows it or not."""
    pipe = open_pipeline(source, task, device_of(source.network))
    network = getattr(pipe, source.component)
    seen = _steps(pipe, network, call_arguments(pipe, task, range(1), steps))
    if len(seen) < 2:
        raise CalibrationError(
            f"pipeline {type(pipe).__name__}",
            got=f"{len(seen)} steps",
            expected="at least two, which show what changes from one to the next",
            remedy="Raise --steps, or --strength",
        )
    one = replace(task, prompts=task.prompts[:1])
    variants: dict[str, list[Arguments]] = {
        BATCH: [_first_call(pipe, network, call_arguments(pipe, one, range(2), steps))],
        SIZE: [_first_call(pipe, network, given) for given in _other_sizes(pipe, network, task, steps)],
        TOKENS: _other_tokens(pipe, network, one, steps),
    }
    known = EQUIVALENTS.get(type(source.network).__name__)
    if known:
        variants[TOKENS].append(_lengthened(seen[0].arguments, known.padded))
    signature = read_signature_off(type(source.network).__name__, seen, variants)
    if known:
        _check_equivalent(network, signature, seen[0])
    _check_one_timestep(network, signature, seen[0])
    return signature


@torch.no_grad()
def _check_equivalent(network: Any, signature: Signature, step: SeenStep) -> None:
    """Raise SourceError unless a network's equivalent predicts what the network itself predicted."""
    assert signature.call is not None
    with fixed_shapes(network):
        ours = network(**step.arguments)
    place = signature.call.output
    given, expected = (undressed(value_at(output, place.path), place) for output in (ours, step.output))
    if not torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().amax())):
        raise SourceError(
            f"network {signature.architecture}",
            got=f"a prediction that differs by {float((given - expected).abs().amax()):.2g} where its "
            "forward is computed with fixed shapes",
            expected="the same prediction: diffusers has changed this network",
            remedy="Use a release of diffusers in the range that pyproject.toml names",
        )


@torch.no_grad()
def _check_one_timestep(network: Any, signature: Signature, seen: SeenStep) -> None:
    """Raise SourceError unless a network that is told a timestep a token (Wan 2.2) does with one a row.

    It is given one a row from then on, so it has to predict the same.
    """
    form = signature.call
    assert form is not None
    tensors = tensors_of_call(form, seen.arguments)
    if not is_tensor(tensors[TIMESTEP]) or tensors[TIMESTEP].ndim < 2:
        return
    tensors[TIMESTEP] = tensors[TIMESTEP][:, 0]
    ours, theirs = (
        undressed(value_at(output, form.output.path), form.output)
        for output in (network(**form.assemble(tensors)), seen.output)
    )
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
        raise SourceError(
            f"network {signature.architecture}",
            got="a timestep for every token, and another prediction where all of a row are one number",
            expected="a network that is told one timestep for each row, or that does with one",
            remedy="To add it to AccuQuant, see docs/networks.md",
        )


@torch.no_grad()
def _steps(pipe: Any, network: Any, arguments: Mapping[str, Any]) -> list[SeenStep]:
    """Return the first call of the network in each of the pipeline's first steps."""
    name = type(network).__name__
    calls: list[tuple[Arguments, Any]] = []
    seen: list[SeenStep] = []

    def note_call(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = _kept(bound_arguments(inspect.signature(forward), args, kwargs, name))
        calls.append((given, forward(*args, **kwargs)))
        return calls[-1][1]

    def note_step(
        step: Callable[..., Any], prediction: Any, timestep: Any, sample: Any, *args: Any, **kw: Any
    ) -> Any:
        result = step(prediction, timestep, sample, *args, **kw)
        if calls:
            seen.append(SeenStep(*calls[0], float(timestep), tuple(sample.shape)))
        calls.clear()
        if len(seen) == _STEPS:
            raise _EnoughSeen
        return result

    with (
        replaced(network, "forward", note_call),
        replaced(pipe.scheduler, "step", note_step),
        refusals_of(pipe),
        suppress(_EnoughSeen),
    ):
        pipe(**arguments, generator=seeded_generators([0]))
    return seen


@torch.no_grad()
def _first_call(pipe: Any, network: Any, arguments: Mapping[str, Any]) -> Arguments:
    """Return the arguments of the network's first call, before which the pipeline is left."""
    seen: list[Arguments] = []

    def note(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(bound_arguments(inspect.signature(forward), args, kwargs, type(network).__name__))
        raise _EnoughSeen

    # a prompt may refer to several images
    counted = [len(arguments[k]) for k in ("prompt", "image", "class_labels") if k in arguments]
    count = int(arguments.get("batch_size", (*counted, 1)[0]))
    with replaced(network, "forward", note), refusals_of(pipe), suppress(_EnoughSeen):
        pipe(**arguments, generator=seeded_generators(range(count)))
    if not seen:
        raise no_step_left(pipe)
    return seen[0]


def _kept(arguments: Arguments) -> dict[str, Any]:
    """Return the arguments of a call with lists of their own: UNets take features off theirs."""
    return {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}


def _other_sizes(pipe: Any, network: Any, task: Task, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments of runs for an image of other sides and for a longer video, where they are chosen.

    Two runs: what changes with the sides alone is no number of frames.
    """
    known = EQUIVALENTS.get(type(network).__name__)
    if sides_can_be_chosen(pipe) and not (known and known.one_size):
        width, height = pixels(pipe, task) or _SOME
        larger = (width * _SIDES[0], height * _SIDES[1])
        yield call_arguments(pipe, replace(task, image_size=larger), range(1), steps)
    frames = frames_of(pipe, task)
    if frames is not None:
        longer = replace(task, num_frames=2 * frames + _MORE_FRAMES)
        yield call_arguments(pipe, longer, range(1), steps)


def _other_tokens(pipe: Any, network: Any, task: Task, steps: int) -> list[Arguments]:
    """Return first calls with a longer prompt, and with half the tokens that prompts are padded to."""
    if not task.prompts:
        return []
    longer = replace(task, prompts=(" ".join(task.prompts * _TIMES),))
    given = call_arguments(pipe, longer, range(1), steps)
    seen = [_first_call(pipe, network, given)]
    with _half_the_tokens(pipe) as changes:
        seen.append(_first_call(pipe, network, call_arguments(pipe, task, range(1), steps) | changes))
    return seen


def _lengthened(arguments: Arguments, padded: Collection[str]) -> Arguments:
    """Return the arguments of a call with more tokens, where longer prompts may not change their number."""
    return {
        name: filled(value, value.shape[1] + MULTIPLE) if name in padded else value
        for name, value in arguments.items()
    }


@contextmanager
def _half_the_tokens(pipe: Any) -> Iterator[dict[str, int]]:
    """Let a pipeline's tokenizers pad to half the length; yield the argument that asks for it as well."""
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part]
    asked = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    with ExitStack() as stack:
        for tokenizer in tokenizers:
            length = tokenizer.model_max_length
            stack.callback(setattr, tokenizer, "model_max_length", length)
            tokenizer.model_max_length = max(length // 2, 2)
        yield {} if asked is None or not asked.default else {"max_sequence_length": asked.default // 2}
