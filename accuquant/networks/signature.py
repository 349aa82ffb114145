"""What a denoising network takes and returns, by name, shape and type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accuquant.errors import UsageError

#: One extent of a tensor: a number where it is fixed, a name where the caller chooses it.
Dim = int | str


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
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """Read what `to_dict` wrote. Raises KeyError, TypeError or ValueError on other data."""
        sample, timestep, *conditioning = [_spec_from_dict(item) for item in data["inputs"]]
        return cls(
            architecture=str(data["architecture"]),
            sample=sample,
            timestep=timestep,
            conditioning=tuple(conditioning),
            output=_spec_from_dict(data["output"]),
            sizes={str(k): int(v) for k, v in dict(data["sizes"]).items()},
            timestep_divisor=float(data.get("timestep_divisor", 1.0)),
        )


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _spec_from_dict(data: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(d if isinstance(d, str) else int(d) for d in data["shape"])
    return TensorSpec(str(data["name"]), shape, str(data["dtype"]))
