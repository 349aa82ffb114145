"""What a denoising network takes and returns, by name, shape and type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, Name, Text, as_facts
from accuquant.errors import UsageError

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
    `timestep_divisor`; step groups are keyed by the scheduler's.
    """

    architecture: str
    sample: TensorSpec
    timestep: TensorSpec
    conditioning: tuple[TensorSpec, ...]
    output: TensorSpec
    sizes: dict[str, int]
    timestep_divisor: float = 1.0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every input in graph order: sample, timestep, then the conditioning."""
        return (self.sample, self.timestep, *self.conditioning)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `from_dict` reads it back."""
        return {
            "architecture": self.architecture,
            "inputs": [_spec_to_dict(spec) for spec in self.inputs],
            "output": _spec_to_dict(self.output),
            "sizes": dict(self.sizes),
            "timestep_divisor": self.timestep_divisor,
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
        )
        _check_extents(signature)
        return signature


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
