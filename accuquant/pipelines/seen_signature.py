"""Read a network's signature off the calls that its pipeline made.

What changes from one step to the next is the sample and the timestep; what changes with the number of images
is the batch; what changes with the image's size or the number of tokens has a name; everything else is a
constant of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from accuquant.errors import SourceError
from accuquant.networks.call_form import CallForm, Path, Place, is_plain, is_tensor, leaves
from accuquant.networks.call_tensors import undressed
from accuquant.networks.network import TIMESTEP
from accuquant.networks.signature import Dim, Signature, TensorSpec

#: Names of the sample's axes behind batch and channels, by its rank; packed patches have their axis before.
_AXES = {3: {1: "patches"}, 4: {2: "height", 3: "width"}, 5: {2: "frames", 3: "height", 4: "width"}}
#: No UNet has more levels.
_DEEPEST = 8
_WHOLE = {torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}
#: What the runs differ in whose first calls are compared.
BATCH, SIZE, TOKENS = "batch", "size", "tokens"
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class SeenStep:
    """A call of the network in one step: its arguments by name, what it returned, the scheduler's input.

    `timestep` is the scheduler's, `latents` the shape of its sample.
    """

    arguments: Arguments
    output: Any
    timestep: float
    latents: tuple[int, ...]


def read_signature_off(
    architecture: str, steps: Sequence[SeenStep], variants: Mapping[str, Sequence[Arguments]]
) -> Signature:
    """Return the signature of a network from the calls in the first steps of one run, two or more.

    `variants` holds the arguments of the first calls of runs with other numbers of images (BATCH), sizes of
    the image (SIZE) and numbers of tokens (TOKENS). Raises SourceError that names what no graph can have.
    """
    rows = _rows(steps[0].arguments, variants[BATCH])
    # PNDM stays at its first timestep for two steps
    later = next((step for step in steps if step.timestep != steps[0].timestep), steps[-1])
    first, second = _flat(steps[0].arguments, rows), _flat(later.arguments, rows)
    sample, timestep = _moving(architecture, first, second)
    others = {kind: [_flat(call, rows) for call in calls] for kind, calls in variants.items()}
    constants = _constants(architecture, first, timestep)
    for kind, runs in others.items():
        if any(_constants(architecture, run, timestep) != constants for run in runs):
            if kind == BATCH:
                raise _refused(architecture, "arguments that are no tensors and change with the batch")
            others[kind] = []  # the graph has the one size that its further arguments were made for
    unit = _unit_axis(architecture, first[sample], steps[0].latents)
    places = {
        name: Place(path, path in rows, unit if path == sample else None)
        for name, path in _named(
            [path for path, v in first.items() if is_tensor(v) and path != timestep]
        ).items()
    }
    shapes = {
        name: [_shape(run[place.path], place.unit_axis) for run in (first, *chain(*others.values()))]
        for name, place in places.items()
    }
    name = next(name for name, place in places.items() if place.path == sample)
    extents = _Extents(shapes[name], len(others[BATCH]), len(others[BATCH]) + len(others[SIZE]))
    specs = {name: TensorSpec(name, extents.of_sample())}
    specs |= {
        key: TensorSpec(key, extents.of(key, shapes[key]), _WHOLE.get(first[place.path].dtype, "float32"))
        for key, place in places.items()
        if key != name
    }
    at = [_flat(step.arguments, rows)[timestep] for step in steps]
    divisor, counts_from = _unit(architecture, [_number(v) for v in at], [step.timestep for step in steps])
    returned, output = _output(architecture, steps[0], specs[name], shapes[name][0], unit)
    return Signature(
        architecture=architecture,
        sample=specs[name],
        timestep=TensorSpec(TIMESTEP, ("steps",)),
        conditioning=tuple(spec for key, spec in specs.items() if key != name),
        output=output,
        sizes={"batch": 1, "steps": 1, **extents.sizes},
        timestep_divisor=divisor,
        call=CallForm(
            {**places, TIMESTEP: Place(timestep)},
            returned,
            constants,
            per_row=is_tensor(at[0]) and at[0].ndim > 0,
            counts_from=counts_from,
        ),
    )


class _Extents:
    """Names the extents of tensors by how they change from run to run; the first run is the plain one."""

    def __init__(self, sample: Sequence[tuple[int, ...]], batches: int, sizes: int) -> None:
        self._sample, self._batches, self._sizes = sample, batches, sizes
        self._names: dict[tuple[int, ...], str] = {tuple(shape[0] for shape in sample): "batch"}
        self.sizes: dict[str, int] = {}

    def of_sample(self) -> tuple[Dim, ...]:
        """Return the sample's shape."""
        axes = _AXES[len(self._sample[0])]
        return ("batch", *(self._extent(self._sample, a, axes.get(a, f"sample_{a}")) for a in self._behind()))

    def of(self, name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Dim, ...]:
        """Return the shape of another tensor."""
        return tuple(self._extent(shapes, axis, f"{name}_{axis}") for axis in range(len(shapes[0])))

    def _behind(self) -> range:
        return range(1, len(self._sample[0]))

    def _extent(self, shapes: Sequence[tuple[int, ...]], axis: int, otherwise: str) -> Dim:
        column = tuple(shape[axis] for shape in shapes)
        if len(set(column)) == 1:
            return column[0]
        if column not in self._names and (side := self._level_of(column)) is not None:
            self._names[column] = side  # a T2I-Adapter's features of a lower level
            self.sizes[side] = column[0]
        if column not in self._names:
            plain = column[: self._sizes + 1]  # the numbers of tokens are the only difference
            name = self._next("tokens") if len(set(plain)) == 1 else otherwise
            self._names[column] = name
            self.sizes[name] = column[0]
        return self._names[column]

    def _level_of(self, column: tuple[int, ...]) -> str | None:
        """Return `height_4` for what is a quarter of the sample's height in every run."""
        for whole, name in self._names.items():
            if name not in ("height", "width"):
                continue
            for level in range(1, _DEEPEST):
                if tuple(extent * 2**level for extent in column) == whole:
                    return f"{name}_{2**level}"
        return None

    def _next(self, name: str) -> str:
        taken = sum(known.startswith(name) for known in self._names.values())
        return f"{name}_{taken + 1}" if taken else name


def _rows(plain: Arguments, batches: Sequence[Arguments]) -> set[Path]:
    """Return where a list has a tensor for each row: where its length changes with the number of images."""
    lists = {path: len(v) for path, v in leaves(plain) if isinstance(v, list | tuple) and v}
    more = [
        {path: len(v) for path, v in leaves(call) if isinstance(v, list | tuple) and v} for call in batches
    ]
    return {path for path, length in lists.items() if any(call.get(path) != length for call in more)}


def _flat(arguments: Arguments, rows: set[Path]) -> dict[Path, Any]:
    flat: dict[Path, Any] = {}
    for path, value in leaves(arguments):
        if path in rows:
            flat[path] = undressed(value, Place(path, rows=True))
        elif isinstance(value, list | tuple) and value:
            flat |= {(*path, index): item for index, item in enumerate(value)}
        else:
            flat[path] = value
    return flat


def _moving(architecture: str, first: dict[Path, Any], second: dict[Path, Any]) -> tuple[Path, Path]:
    """Return where sample and timestep stand: what differs between two steps."""
    moving = [path for path, value in first.items() if not _same(value, second.get(path))]
    samples = [path for path in moving if is_tensor(first[path]) and first[path].ndim in _AXES]
    timesteps = [path for path in moving if path not in samples and _is_timestep(first[path])]
    if len(samples) == len(timesteps) == 1 and len(moving) == 2:
        return samples[0], timesteps[0]
    names = ", ".join(sorted({str(path[0]) for path in moving})) or "nothing"
    raise _refused(architecture, f"{names} that change from step to step")


def _is_timestep(value: Any) -> bool:
    if is_tensor(value):
        return value.ndim < 3 and bool((value == value.reshape(-1)[0]).all())
    return isinstance(value, int | float)


def _same(one: Any, other: Any) -> bool:
    if is_tensor(one) and is_tensor(other):
        return one.shape == other.shape and bool(torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)


def _constants(architecture: str, flat: dict[Path, Any], timestep: Path) -> dict[Path, Any]:
    """Return what is given beside tensors."""
    given = {path: value for path, value in flat.items() if not is_tensor(value) and path != timestep}
    foreign = [str(path[0]) for path, value in given.items() if not is_plain(value)]
    if foreign:
        raise _refused(architecture, f"{', '.join(foreign)}, which is neither a tensor nor a plain value,")
    return given


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Return a name for each place: its last key, and an index behind it; all keys where two are alike."""
    short = {path: _joined(path[_last_key(path) :]) for path in paths}
    names = list(short.values())
    return {name if names.count(name) == 1 else _joined(path): path for path, name in short.items()}


def _last_key(path: Path) -> int:
    return max(index for index, step in enumerate(path) if isinstance(step, str))


def _joined(path: Path) -> str:
    return "_".join(map(str, path))


def _unit_axis(architecture: str, sample: Tensor, latents: tuple[int, ...]) -> int | None:
    """Return the axis of extent 1 that the network's sample has and the scheduler's has not."""
    if sample.ndim == len(latents):
        return None
    for axis in range(1, sample.ndim):
        if sample.shape[axis] == 1 and _shape(sample, axis)[2:] == latents[2:]:
            return axis
    raise _refused(architecture, f"a sample {list(sample.shape)} made of latents {list(latents)}")


def _shape(tensor: Tensor, unit_axis: int | None) -> tuple[int, ...]:
    shape = list(tensor.shape)
    if unit_axis is not None:
        del shape[unit_axis]
    return tuple(shape)


def _number(value: Any) -> float:
    return float(value.reshape(-1)[0]) if is_tensor(value) else float(value)


def _unit(architecture: str, given: list[float], timesteps: list[float]) -> tuple[float, float | None]:
    """Return what the scheduler's timestep is divided by, and what it is counted down from, if it is."""

    def all_are(expected: list[float]) -> bool:
        return all(abs(v - e) <= 1e-5 * max(1.0, abs(e)) for v, e in zip(given, expected, strict=True))

    for divisor in (1.0, *(float(f"{t / v:.4g}") for v, t in zip(given, timesteps, strict=True) if v and t)):
        if divisor > 0 and all_are([t / divisor for t in timesteps]):
            return divisor, None
    for total in (float(f"{t / (1 - v):.4g}") for v, t in zip(given, timesteps, strict=True) if v != 1 and t):
        if total > 0 and all_are([(total - t) / total for t in timesteps]):
            return 1.0, total
    pairs = ", ".join(f"{t:g} -> {v:g}" for v, t in zip(given, timesteps, strict=True))
    raise _refused(architecture, f"timesteps of another unit ({pairs})")


def _output(
    architecture: str, step: SeenStep, sample: TensorSpec, shape: tuple[int, ...], unit: int | None
) -> tuple[Place, TensorSpec]:
    value, path = step.output, ()  # type: tuple[Any, Path]
    if not is_tensor(value) and not isinstance(value, list | tuple):
        value, path = value["sample"] if isinstance(value, Mapping) else value.sample, ("sample",)
    elif isinstance(value, tuple):
        value, path = value[0], (0,)
    rows = isinstance(value, list | tuple)
    tensor = torch.stack(list(value)) if rows else value
    place = Place(path, rows, unit if tensor.ndim == len(shape) + 1 else None)
    predicted = undressed(value, place)
    if predicted.ndim != len(shape):
        raise _refused(architecture, f"a prediction {list(predicted.shape)} for a sample {list(shape)}")
    named = zip(predicted.shape, shape, sample.shape, strict=True)
    dims = tuple(name if extent == own else int(extent) for extent, own, name in named)
    return place, TensorSpec(f"out_{sample.name}", dims)


def _refused(architecture: str, got: str) -> SourceError:
    return SourceError(
        f"network {architecture}",
        got=got,
        expected="a sample and a timestep that change from step to step, further tensors and plain values "
        "that do not, and a prediction like the sample",
        remedy="Switch off what else the pipeline does. What a capture cannot know is an entry in "
        "accuquant/networks/architectures.py (docs/networks.md)",
    )
