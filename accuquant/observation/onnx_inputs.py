"""Inputs to observe a float ONNX with: the user's own arrays, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant.errors import SourceError, UsageError
from accuquant.networks.signature import Dim, Signature, TensorSpec

Feed = dict[str, npt.NDArray[Any]]

#: Names that exporters give to the input that is denoised.
_SAMPLES = ("sample", "hidden_states", "latent_model_input", "x")
_TIMESTEPS = ("timestep", "timesteps", "t")
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

    def signature(self) -> Signature:
        """Return them as a Signature, with the extents of random inputs as sizes."""
        by_name = {spec.name: spec for spec in self.specs}
        others = tuple(s for s in self.specs if s.name not in (self.sample, self.timestep))
        sizes = {d: _extent(s, i) for s in self.specs for i, d in enumerate(s.shape) if isinstance(d, str)}
        return Signature("onnx", by_name[self.sample], by_name[self.timestep], others, self.output, sizes)


def inputs_of(graph: ir.Graph, path: Path) -> OnnxInputs:
    """Read the inputs of a graph. Raises SourceError where sample or timestep cannot be told."""
    specs = tuple(_spec(value) for value in graph.inputs)
    names = [spec.name for spec in specs]
    sample = next((n for n in _SAMPLES if n in names), None) or next(
        (s.name for s in specs if len(s.shape) == 4), None
    )
    timestep = next((n for n in _TIMESTEPS if n in names), None)
    if sample is None or timestep is None:
        raise SourceError(
            f"'{path}'",
            got=f"the inputs {', '.join(names)}",
            expected=f"one of {', '.join(_SAMPLES)}, and one of {', '.join(_TIMESTEPS)}",
            remedy="Export a denoising network with diffusers' input names",
        )
    return OnnxInputs(specs, sample, timestep, _spec(graph.outputs[0]))


def random_feeds(inputs: OnnxInputs, count: int, seed: int) -> list[Feed]:
    """Return `count` random feeds: normal floats, zeros for integers, timesteps spread over the schedule."""
    rng = np.random.default_rng(seed)
    sizes = inputs.signature().sizes
    feeds = []
    for number in range(count):
        feed: Feed = {}
        for spec in inputs.specs:
            shape = spec.resolve(sizes)
            if spec.name == inputs.timestep:
                value = _TRAIN_TIMESTEPS * (1 - (number + 0.5) / count)
                feed[spec.name] = np.full(shape, value).astype(spec.dtype)
            elif np.dtype(spec.dtype).kind == "f":
                feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            else:
                ones = "mask" in spec.name
                feed[spec.name] = np.full(shape, ones, spec.dtype)
        feeds.append(feed)
    return feeds


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
            name: np.asarray(array if counts[name] is None else array[number], expected[name].dtype)
            for name, array in arrays.items()
        }
        for number in range(total)
    ]


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
