"""What units share and what is too large to travel with each of them: every process makes its own, once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerWorker(Generic[T]):
    """A value that a process makes when a unit first asks for it.

    Only the recipe for making it travels, and that once to each worker. The value may change while a unit
    works with it, so long as each unit brings it to where it needs it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.make, self.token = make, uuid.uuid4().hex
        self._made: list[T] = []

    def get(self) -> T:
        """Return the value, the same one each time in one process."""
        if not self._made:
            self._made.append(self.make())
        return self._made[0]

    def forget(self) -> None:
        """Let the next unit make it anew."""
        self._made.clear()
