"""How the tensors of a Signature become the arguments of a network's forward, where a call told us so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, Name, Real, as_facts

#: Where a value stands in a call: the argument's name, then keys of dicts and indices of lists.
Path = tuple[str | int, ...]
#: What an argument that is no tensor may be.
_PLAIN = (bool, int, float, str, type(None))
VERSION = 1


@dataclass(frozen=True)
class Place:
    """Where a tensor stands, e.g. `Place(("added_cond_kwargs", "time_ids"))`.

    `rows`: the network takes a list with one tensor for each row of the batch. `unit_axis`: an axis of
    extent 1 that the network's tensor has, counted with the batch, and the signature's has not.
    """

    path: Path
    rows: bool = False
    unit_axis: int | None = None

    def dressed(self, tensor: Any) -> Any:
        """Return a torch tensor as the network has it here."""
        if self.unit_axis is not None:
            tensor = tensor.unsqueeze(self.unit_axis)
        return list(tensor.unbind(0)) if self.rows else tensor


@dataclass(frozen=True)
class CallForm:
    """How a network is called whose class has no entry in architectures.py: as its pipeline called it.

    `tensors` maps the signature's names, that of the sample and "timestep" among them, to places;
    `constants` holds every further argument by its path. `per_row`: the timestep has one element a row, not
    none. `counts_from` N: the network is given (N - t) / N for the scheduler's timestep t. `output` is where
    the prediction stands in what the network returns; an empty path is the return value itself.
    """

    tensors: Mapping[str, Place]
    output: Place
    constants: Mapping[Path, Any] = field(default_factory=dict)
    per_row: bool = True
    counts_from: float | None = None

    def assemble(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a call with `tensors`, by the signature's names."""
        placed = dict(self.constants)
        placed |= {self.tensors[name].path: self.tensors[name].dressed(t) for name, t in tensors.items()}
        arguments: dict[str, Any] = nested(placed)
        return arguments

    def network_timestep(self, timestep: Any) -> Any:
        """Return what the network is given for the graph's timestep, a number or a tensor."""
        return timestep if self.counts_from is None else (self.counts_from - timestep) / self.counts_from

    def graph_timestep(self, timestep: Any) -> Any:
        """Undo `network_timestep`."""
        return timestep if self.counts_from is None else self.counts_from - self.counts_from * timestep

    def returned(self, prediction: Any) -> Any:
        """Return a torch tensor as what the network returns, for whoever reads only the prediction."""
        value = self.output.dressed(prediction)
        for step in reversed(self.output.path):
            value = SimpleNamespace(**{step: value}) if isinstance(step, str) else (None,) * step + (value,)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `from_dict` reads it back."""
        return {
            "version": VERSION,
            "tensors": {name: _place_to_dict(place) for name, place in self.tensors.items()},
            "output": _place_to_dict(self.output),
            "constants": [{"path": list(path), "value": value} for path, value in self.constants.items()],
            "per_row": self.per_row,
            "counts_from": self.counts_from,
        }

    @classmethod
    def from_dict(cls, data: Any) -> CallForm:
        """Read what `to_dict` wrote. Raises FactsError for other data, and for another version."""
        facts = as_facts(data, _FormFacts)
        if facts.version != VERSION:
            raise FactsError(
                f"signature: a call of version {facts.version}, not {VERSION}; upgrade AccuQuant"
            )
        return cls(
            {name: _place(item) for name, item in facts.tensors.items()},
            _place(facts.output),
            {item.path: item.value for item in facts.constants},
            facts.per_row,
            facts.counts_from,
        )


def value_at(value: Any, path: Path) -> Any:
    """Return what stands at `path` inside a value: keys of dicts, indices of lists, attributes of objects."""
    for step in path:
        inside = isinstance(value, Mapping | list | tuple)
        value = value[step] if inside else getattr(value, str(step))
    return value


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what nested dicts, lists and tuples hold, with where it stands; a list of tensors is one leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list | tuple) and value and not all(map(is_tensor, value)):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def nested(placed: Mapping[Path, Any]) -> Any:
    """Undo `leaves`: return dicts and lists that hold each value at its path."""
    if () in placed:
        return placed[()]
    inside: dict[str | int, dict[Path, Any]] = {}
    for path, value in placed.items():
        inside.setdefault(path[0], {})[path[1:]] = value
    if all(isinstance(key, int) for key in inside):
        return [nested(inside[key]) for key in sorted(inside)]
    return {key: nested(items) for key, items in inside.items()}


def is_tensor(value: object) -> bool:
    """Say whether a value is a tensor or an array, without importing torch."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_plain(value: object) -> bool:
    """Say whether a leaf that is no tensor is JSON: a number, a text, None, an empty container."""
    return isinstance(value, _PLAIN) or value in ({}, [], ())


@dataclass(frozen=True)
class _PlaceFacts:
    path: Annotated[tuple[Name | int, ...], Meta(max_length=16)]
    rows: bool = False
    unit_axis: Annotated[int, Meta(ge=1, le=8)] | None = None


@dataclass(frozen=True)
class _ConstantFacts:
    path: Annotated[tuple[Name | int, ...], Meta(min_length=1, max_length=16)]
    value: Any


@dataclass(frozen=True)
class _FormFacts:
    version: int
    tensors: dict[Name, _PlaceFacts]
    output: _PlaceFacts
    constants: Annotated[tuple[_ConstantFacts, ...], Meta(max_length=4096)] = ()
    per_row: bool = True
    counts_from: Real | None = None


def _place_to_dict(place: Place) -> dict[str, Any]:
    return {"path": list(place.path), "rows": place.rows, "unit_axis": place.unit_axis}


def _place(facts: _PlaceFacts) -> Place:
    return Place(facts.path, facts.rows, facts.unit_axis)
