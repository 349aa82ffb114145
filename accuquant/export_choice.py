"""Why an export has the precision and the lowering that it has, as its manifest keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from accuquant._util.facts import Text, as_facts

#: Where an export is to run if not on a GPU.
CPU = "cpu"
#: What a choice rests on: a documented rule, the audit of engines that were compiled, or their times.
Basis = Literal["rule", "audit", "measurement"]


@dataclass(frozen=True)
class ExportChoice:
    """What was chosen for `target` ("cpu", or a compute capability like "sm89"), and why.

    `reason` is one line for people. `candidates` holds the figures that were compared, as JSON values;
    it is empty where a rule decided.
    """

    target: Text
    precision: Text
    lowering: Text
    basis: Basis
    reason: Text
    candidates: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return (
            f"Chosen for {self.target}: --precision {self.precision} --lowering {self.lowering}\n"
            f"  by {self.basis}: {self.reason}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"candidates": [dict(figures) for figures in self.candidates]}

    @classmethod
    def from_dict(cls, data: Any) -> ExportChoice:
        """Return the choice that to_dict wrote. Raises FactsError, a ValueError, for other values."""
        return as_facts(data, cls)
