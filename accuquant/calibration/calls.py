"""How often the network is called: the measure of what a stage costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calls:
    """Calls of the network: `forward` without gradients, `backward` those that are differentiated as well."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """How often the network runs."""
        return self.forward + self.backward

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Calls:
        return Calls(self.forward * times, self.backward * times)
