"""The GPUs that an engine is compiled for, by compute capability."""

from __future__ import annotations

from dataclasses import dataclass

from accuquant.errors import unknown_name


@dataclass(frozen=True, order=True)
class Target:
    """A compute capability, e.g. `Target(8, 9)`, which is written "sm89"."""

    major: int
    minor: int

    @property
    def name(self) -> str:
        """The name on the command line and in paths: "sm89"."""
        return f"sm{self.major}{self.minor}"

    def __str__(self) -> str:
        return self.name


#: What TensorRT for RTX compiles for without a GPU -> the graphics cards that have it.
TARGETS = {
    Target(7, 5): "Turing: RTX 20, T4",
    Target(8, 0): "Ampere: A100, A30",
    Target(8, 6): "Ampere: RTX 30, A10, A40",
    Target(8, 9): "Ada: RTX 40, L4, L40",
    Target(12, 0): "Blackwell: RTX 50",
    Target(12, 1): "Blackwell: GB10",
}
_BY_NAME = {target.name: target for target in TARGETS}


def parse_target(name: str) -> Target:
    """Return the target called `name`, e.g. "sm89". Raises UsageError that lists the names."""
    if name not in _BY_NAME:
        raise unknown_name("target", name, _BY_NAME)
    return _BY_NAME[name]


def parse_targets(names: str) -> tuple[Target, ...]:
    """Return the targets in a list like "sm86,sm89", each once, in order. Raises UsageError."""
    parts = [part.strip() for part in names.split(",")]
    return tuple(dict.fromkeys(parse_target(part) for part in parts))
