"""The inputs of a float ONNX: which is the sample, which the timestep, and arrays to run it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.errors import SourceError, UsageError
from accuquant.networks.signature import Dim, Signature, TensorSpec

Feed = dict[str, npt.NDArray[Any]]

#: Names that exporters give to the input that is denoised.
_SAMPLES = ("sample", "hidden_states", "latent_model_input", "x", "x_t", "latent", "latents", "noisy_latents")
_SIGMAS = ("sigma", "sigmas")
_TIMESTEPS = ("timestep", "timesteps", "t", "time", "time_step", "ts", *_SIGMAS)
#: Vectors that are no timestep, whatever else they are.
_NO_TIMESTEP = ("class_labels", "labels", "y", "guidance", "guidance_scale", "mask")
#: The noise levels of Stable Diffusion's schedule, for an input that takes them instead of timesteps.
_SIGMA_RANGE = (14.6, 0.03)
#: 2048 x 2048 x 4 elements.
_LARGEST_RANDOM = 2**24
_ROLES = ("sample", "timestep")
#: Extents of random inputs where the graph leaves them open: [axis of an image], tokens, anything else.
_IMAGE, _TOKENS, _BATCH = 32, 77, 1
_TRAIN_TIMESTEPS = 1000
_REMEDY = "Give --inputs FILE.npz with an array for each input"


@dataclass(frozen=True)
class OnnxInputs:
    """The inputs of a float graph: which is the sample, which the timestep, and what all look like."""

    specs: tuple[TensorSpec, ...]
    sample: str
    timestep: str
    output: TensorSpec

    @property
    def takes_sigma(self) -> bool:
        """Whether what stands for the timestep is called as noise levels are."""
        return self.timestep in _SIGMAS

    def signature(self) -> Signature:
        """Return them as a Signature, with the extents of random inputs as sizes."""
        by_name = {spec.name: spec for spec in self.specs}
        others = tuple(s for s in self.specs if s.name not in (self.sample, self.timestep))
        sizes = {d: _extent(s, i) for s in self.specs for i, d in enumerate(s.shape) if isinstance(d, str)}
        return Signature("onnx", by_name[self.sample], by_name[self.timestep], others, self.output, sizes)


def inputs_of(graph: ir.Graph, path: Path, names: Mapping[str, str] | None = None) -> OnnxInputs:
    """Read the inputs of a graph.

    `names` gives the input that is the "sample", or the "timestep"; else it is known by its name, or by being
    the only image, or the only number or vector. Raises SourceError where it cannot be told, UsageError for
    names that the graph does not have.
    """
    specs = tuple(_spec(value) for value in graph.inputs)
    given = _checked(names or {}, specs)
    sample = given.get("sample") or _named(specs, _SAMPLES) or _only(specs, 4, 4)
    others = tuple(spec for spec in specs if spec.name not in (sample, *_NO_TIMESTEP))
    timestep = given.get("timestep") or _named(others, _TIMESTEPS) or _only(others, 0, 1)
    if sample is None or timestep is None:
        raise SourceError(
            f"'{path}'",
            got=f"the inputs {', '.join(spec.name for spec in specs)}",
            expected=f"one of {', '.join(_SAMPLES)}, and one of {', '.join(_TIMESTEPS)}",
            remedy="Say which they are: --input-names sample=NAME,timestep=NAME",
        )
    return OnnxInputs(specs, sample, timestep, _spec(graph.outputs[0]))


def parse_names(text: str) -> dict[str, str]:
    """Read "sample=x,timestep=time", what `--input-names` takes. Raises UsageError."""
    names = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if not set(names) <= set(_ROLES) or not all(names.values()) or len(names) != len(text.split(",")):
        raise UsageError(
            "--input-names",
            got=repr(text[:100]),
            expected="sample=NAME, timestep=NAME or both; other inputs keep their names",
            remedy="Give --input-names sample=x,timestep=time, for example",
        )
    return names


def _checked(names: Mapping[str, str], specs: Sequence[TensorSpec]) -> Mapping[str, str]:
    known = [spec.name for spec in specs]
    unknown = [name for name in names.values() if name not in known]
    if unknown or len(set(names.values())) != len(names):
        raise UsageError(
            "--input-names",
            got=", ".join(unknown) or "one input for two things",
            expected=f"inputs of the graph: {', '.join(known)}",
            remedy="Name one of them for the sample and one for the timestep",
        )
    return names


def _named(specs: Sequence[TensorSpec], names: Sequence[str]) -> str | None:
    there = {spec.name for spec in specs}
    return next((name for name in names if name in there), None)


def _only(specs: Sequence[TensorSpec], lowest: int, highest: int) -> str | None:
    """Return the one input of so many axes, None where there are several."""
    found = [spec.name for spec in specs if lowest <= len(spec.shape) <= highest]
    return found[0] if len(found) == 1 else None


def random_feeds(
    inputs: OnnxInputs, count: int, seed: int, *, sizes: Mapping[str, int] | None = None
) -> list[Feed]:
    """Return `count` random feeds: normal floats, zeros for integers, timesteps spread over the schedule.

    `sizes` gives extents that are not to be guessed.
    """
    rng = np.random.default_rng(seed)
    known = {**inputs.signature().sizes, **(sizes or {})}
    feeds = []
    for number in range(count):
        feed: Feed = {}
        for spec in inputs.specs:
            shape, dtype = _bounded(spec, spec.resolve(known)), np.dtype(spec.dtype)
            if spec.name == inputs.timestep:
                feed[spec.name] = np.full(shape, _timestep(spec.name, (number + 0.5) / count)).astype(dtype)
            elif _is_float(dtype):
                feed[spec.name] = rng.standard_normal(shape).astype(dtype)
            else:
                ones = "mask" in spec.name
                feed[spec.name] = np.full(shape, ones, dtype)
        feeds.append(feed)
    return feeds


def _bounded(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape`. Raises UsageError where a file asks for inputs that are empty or fill the memory."""
    if 0 < math.prod(shape) <= _LARGEST_RANDOM:
        return shape
    raise UsageError(
        f"input '{spec.name[:80]}'",
        got=f"shape {list(shape)}",
        expected=f"1 to {_LARGEST_RANDOM} elements, to fill with random values",
        remedy=_REMEDY,
    )


def _timestep(name: str, share: float) -> float:
    """Return the timestep, or the noise level, after `share` of the schedule."""
    if name in _SIGMAS:
        return float(_SIGMA_RANGE[0] ** (1 - share) * _SIGMA_RANGE[1] ** share)
    return _TRAIN_TIMESTEPS * (1 - share)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a type is a float; numpy has no kind for bfloat16."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def load_feeds(path: Path, inputs: OnnxInputs) -> list[Feed]:
    """Read an .npz with one array an input: [N, *shape] for N calls, or [*shape] for one.

    Raises UsageError where an input is missing or arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as fault:
        raise UsageError(
            f"--inputs '{path}'",
            got=f"{type(fault).__name__}: {fault}",
            expected="an .npz file of plain arrays",
            remedy="Write it with numpy.savez",
        ) from fault
    expected = {spec.name: spec for spec in inputs.specs}
    if set(arrays) != set(expected):
        raise _unfit(path, f"arrays named {', '.join(sorted(arrays))}", ", ".join(expected))
    counts = {name: _count(path, expected[name], array) for name, array in arrays.items()}
    known = {count for count in counts.values() if count is not None}
    if len(known) > 1:
        raise _unfit(path, f"arrays for {sorted(known)} calls", "the same number of calls in every array")
    total = known.pop() if known else 1
    return [
        {
            name: _typed(array if counts[name] is None else array[number], np.dtype(expected[name].dtype))
            for name, array in arrays.items()
        }
        for number in range(total)
    ]


def _typed(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert to `dtype`; numpy saves bfloat16 as two bytes without a type."""
    if array.dtype == np.dtype("V2") and dtype == ml_dtypes.bfloat16:
        return array.view(dtype)
    return np.asarray(array).astype(dtype)


def timestep_values(feeds: list[Feed], inputs: OnnxInputs) -> list[float]:
    """Return the timestep of each feed."""
    return [float(feed[inputs.timestep].reshape(-1)[0]) for feed in feeds]


def _spec(value: ir.Value) -> TensorSpec:
    shape = value.shape if value.shape is not None else ()
    dims: list[Dim] = []
    for number, dim in enumerate(shape):
        fixed = isinstance(dim, int)
        dims.append(int(dim) if fixed else str(dim.value or f"{value.name}_{number}"))  # type: ignore[union-attr,arg-type]
    dtype = value.dtype or ir.DataType.FLOAT
    return TensorSpec(str(value.name), tuple(dims), str(dtype.numpy()))


def _extent(spec: TensorSpec, axis: int) -> int:
    """Return a size for an extent that the graph leaves open."""
    if axis == 0:
        return _BATCH
    return _IMAGE if len(spec.shape) == 4 else _TOKENS


def _count(path: Path, spec: TensorSpec, array: npt.NDArray[Any]) -> int | None:
    """Return the number of calls that `array` holds, None where it holds one without an axis for it."""
    for skipped in (0, 1):
        shape = array.shape[skipped:]
        fits = len(shape) == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, shape, strict=True)
        )
        if fits:
            return array.shape[0] if skipped else None
    raise _unfit(
        path,
        f"'{spec.name}' of shape {list(array.shape)}",
        f"[{', '.join(map(str, spec.shape))}], or one more axis in front for several calls",
    )


def _unfit(path: Path, got: str, expected: str) -> UsageError:
    return UsageError(f"--inputs '{path}'", got=got, expected=expected, remedy=_REMEDY)


def sizes_of(feed: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the shapes of a feed, for messages."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
