"""What a denoising network takes and returns, by name, shape and type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, Name, Text, as_facts
from accuquant.errors import SourceError, UsageError
from accuquant.networks.call_form import CallForm

#: One extent of a tensor: a number where it is fixed, a name where the caller chooses it.
Dim = int | str
#: The element types that a graph's inputs and outputs have.
_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")
#: More elements than any network takes; a file must not make a sampler ask for terabytes.
_MOST_ELEMENTS = 2**28


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor, e.g. `TensorSpec("sample", ("batch", 3, "height", "width"), "float32")`."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every named extent looked up in `sizes`."""
        missing = [d for d in self.shape if isinstance(d, str) and d not in sizes]
        if missing:
            raise UsageError(
                f"input '{self.name}'",
                got=f"sizes {dict(sizes)}",
                expected=f"a size for {', '.join(missing)}",
                remedy="Give a number for every dynamic extent",
            )
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True)
class Signature:
    """The call signature of a denoising network: `sample`, `timestep`, and what conditions it.

    `conditioning` holds, in graph order, every further tensor under its diffusers name:
    `encoder_hidden_states` (text), `class_labels`, `text_embeds` and `time_ids` (SDXL). A network
    without conditioning has an empty tuple. Transformers call the sample `hidden_states`. `sizes` gives a
    default for each named extent. The network's timestep is the scheduler's divided by
    `timestep_divisor`; step groups are keyed by the scheduler's. `call` says how the network is called where
    its class has no entry in architectures.py.
    """

    architecture: str
    sample: TensorSpec
    timestep: TensorSpec
    conditioning: tuple[TensorSpec, ...]
    output: TensorSpec
    sizes: dict[str, int]
    timestep_divisor: float = 1.0
    call: CallForm | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every input in graph order: sample, timestep, then the conditioning."""
        return (self.sample, self.timestep, *self.conditioning)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `from_dict` reads it back."""
        call = {} if self.call is None else {"call": self.call.to_dict()}
        return {
            "architecture": self.architecture,
            "inputs": [_spec_to_dict(spec) for spec in self.inputs],
            "output": _spec_to_dict(self.output),
            "sizes": dict(self.sizes),
            "timestep_divisor": self.timestep_divisor,
            **call,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Signature:
        """Read what `to_dict` wrote. Raises FactsError, a ValueError, for other data."""
        facts = as_facts(data, _SignatureFacts)
        sample, timestep, *conditioning = [_spec_from_facts(item) for item in facts.inputs]
        signature = cls(
            architecture=facts.architecture,
            sample=sample,
            timestep=timestep,
            conditioning=tuple(conditioning),
            output=_spec_from_facts(facts.output),
            sizes=dict(facts.sizes),
            timestep_divisor=facts.timestep_divisor,
            call=None if facts.call is None else CallForm.from_dict(facts.call),
        )
        _check_extents(signature)
        _check_places(signature)
        return signature


class Uncaptured(Signature):
    """Stands for the signature of a class without an entry until its pipeline has called its network.

    Whatever is read of it but `architecture` is a SourceError that says so.
    """

    def __init__(self, architecture: str) -> None:
        object.__setattr__(self, "architecture", architecture)

    def __getattr__(self, name: str) -> Any:
        if name not in ("sample", "timestep", "conditioning", "output", "sizes"):
            raise AttributeError(name)
        raise SourceError(
            f"network {self.architecture}",
            got="a class without an entry in architectures.py, and no recipe that says how it is called",
            expected="a signature: what the network takes and returns",
            remedy="Run `accuquant calibrate` on its pipeline, which reads it off the first calls, or give "
            "the recipe's: load_source(..., signature=recipe.signature)",
        )


_Extent = Annotated[int, Meta(ge=0, le=_MOST_ELEMENTS)]


@dataclass(frozen=True)
class _SpecFacts:
    name: Name
    shape: Annotated[tuple[_Extent | Name, ...], Meta(max_length=16)]
    dtype: Text


@dataclass(frozen=True)
class _SignatureFacts:
    architecture: Name
    inputs: Annotated[tuple[_SpecFacts, ...], Meta(min_length=2, max_length=64)]
    output: _SpecFacts
    sizes: dict[Name, Annotated[int, Meta(ge=1, le=_MOST_ELEMENTS)]]
    timestep_divisor: Annotated[float, Meta(gt=0, le=1e30)] = 1.0
    call: Any = None


def _check_places(signature: Signature) -> None:
    """Raise FactsError unless a captured call has a place for every input, and for no other tensor."""
    if signature.call is None:
        return
    names = {spec.name for spec in signature.inputs}
    if set(signature.call.tensors) != names:
        raise FactsError(
            f"signature: a call with {', '.join(sorted(signature.call.tensors))} for the inputs "
            f"{', '.join(sorted(names))}"
        )


def _check_extents(signature: Signature) -> None:
    sizes = signature.sizes | {"batch": 1}
    for spec in (*signature.inputs, signature.output):
        # a graph that somebody else exported may name extents that have no default
        shape = [sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape]
        if math.prod(shape) > _MOST_ELEMENTS:
            raise FactsError(f"signature: '{spec.name}' of shape {shape}, an impossible size")


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _spec_from_facts(facts: _SpecFacts) -> TensorSpec:
    if facts.dtype not in _DTYPES:
        raise FactsError(
            f"signature: '{facts.name}' of type {facts.dtype!r}, not one of {', '.join(_DTYPES)}"
        )
    return TensorSpec(facts.name, facts.shape, facts.dtype)
