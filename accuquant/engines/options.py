"""What an engine is compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accuquant.engines.target import Target
from accuquant.errors import UsageError

ProfilingVerbosity = Literal["layer_names_only", "detailed", "none"]
HardwareCompatibility = Literal["none", "ampere+", "sameComputeCapability"]


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input: the smallest, the one to be fast for, the largest.

    `ShapeRange.fixed((4, 3, 32, 32))` is one shape. Raises UsageError where min <= opt <= max fails.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = {"min": self.min, "opt": self.opt, "max": self.max}
        if len(set(map(len, shapes.values()))) != 1:
            raise _wrong_range(shapes, "as many extents in each of them")
        if any(extent < 1 for shape in shapes.values() for extent in shape):
            raise _wrong_range(shapes, "extents of at least 1")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise _wrong_range(shapes, "min <= opt <= max in every extent")

    @classmethod
    def fixed(cls, shape: tuple[int, ...]) -> ShapeRange:
        """Return the range that holds one shape."""
        return cls(shape, shape, shape)


@dataclass(frozen=True)
class BuildOptions:
    """How one engine is compiled.

    `profile` maps each input of the graph that has a dynamic extent to its shapes; a fixed shape makes the
    input static. `memory_pools` maps TensorRT's pool names ("workspace") to bytes. `timing_cache` is read
    and written by tensorrt; tensorrt_rtx has none. `profiling_verbosity` "detailed" lets the log name
    every layer. `tf32` lets float32 layers use TensorFloat-32, as TensorRT does by default.
    """

    target: Target
    backend: str = "auto"
    profile: Mapping[str, ShapeRange] = field(default_factory=dict)
    builder_optimization_level: int | None = None
    profiling_verbosity: ProfilingVerbosity = "detailed"
    memory_pools: Mapping[str, int] = field(default_factory=dict)
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    tf32: bool = True
    timing_cache: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values of everything that shapes the engine: not the timing cache."""
        return {
            "target": self.target.name,
            "profile": {
                name: [list(r.min), list(r.opt), list(r.max)] for name, r in sorted(self.profile.items())
            },
            "builder_optimization_level": self.builder_optimization_level,
            "profiling_verbosity": self.profiling_verbosity,
            "memory_pools": dict(sorted(self.memory_pools.items())),
            "hardware_compatibility": self.hardware_compatibility,
            "version_compatible": self.version_compatible,
            "strip_weights": self.strip_weights,
            "refit": self.refit,
            "tf32": self.tf32,
        }


def _wrong_range(shapes: Mapping[str, tuple[int, ...]], expected: str) -> UsageError:
    got = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return UsageError(
        "profile",
        got=got,
        expected=expected,
        remedy="Correct --minShapes, --optShapes and --maxShapes",
    )
