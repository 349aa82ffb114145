"""trtexec's spelling of shapes, memory pools and precisions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from accuquant.engines.options import ShapeRange
from accuquant.errors import UsageError, unknown_name
from accuquant.networks.signature import Dim

Shapes = dict[str, tuple[int, ...]]
#: Name in --memPoolSize -> name in TensorRT's MemoryPoolType.
_POOLS = {
    "workspace": "workspace",
    "dlaSRAM": "dla_managed_sram",
    "dlaLocalDRAM": "dla_local_dram",
    "dlaGlobalDRAM": "dla_global_dram",
    "tacticSharedMem": "tactic_shared_memory",
}
_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([BKMG]?)")
_SHAPE = re.compile(r"\d+(?:x\d+)*")

#: Flags of trtexec that a strongly typed build has no use for -> why.
_PRECISION = "since TensorRT 11 the ONNX file alone decides the precision of each layer"
_NO_RUN = "a build runs nothing"
REMOVED_SWITCHES = {
    **dict.fromkeys(("--int8", "--fp16", "--bf16", "--fp8", "--int4", "--best"), _PRECISION),
    "--stronglyTyped": "every engine is built strongly typed",
    **dict.fromkeys(("--skipInference", "--buildOnly"), _NO_RUN),
}
REMOVED_OPTIONS = {
    "--calib": "the scales are in the Q/DQ pairs; `accuquant calibrate` finds them",
    **dict.fromkeys(("--precisionConstraints", "--layerPrecisions", "--layerOutputTypes"), _PRECISION),
}


def parse_shapes(option: str, text: str) -> Shapes:
    """Return the shapes in "sample:1x3x32x32,timestep:1". Raises UsageError that names `option`."""
    shapes: Shapes = {}
    for item in filter(None, text.split(",")):
        name, _, extents = item.rpartition(":")
        if not name or not _SHAPE.fullmatch(extents):
            raise UsageError(
                option,
                got=f"'{item}'",
                expected="name:extents, like sample:1x3x32x32,timestep:1",
                remedy="Correct the shape",
            )
        shapes[name] = tuple(int(extent) for extent in extents.split("x"))
    return shapes


def parse_memory_pools(text: str) -> dict[str, int]:
    """Return {pool: bytes} of "workspace:1024,tacticSharedMem:48K"; without a unit it is MiB, as in trtexec.

    Raises UsageError for an unknown pool or a size that is not a number.
    """
    pools = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition(":")
        if name not in _POOLS:
            raise unknown_name("memPoolSize", name, _POOLS)
        match = _SIZE.fullmatch(size)
        if match is None:
            raise UsageError(
                f"--memPoolSize {name}",
                got=f"'{size}'",
                expected="a size like 1024 (MiB), 512K or 4G",
                remedy="Correct the size",
            )
        pools[_POOLS[name]] = int(float(match[1]) * _UNITS[match[2] or "M"])
    return pools


def make_profile(
    shapes: Mapping[str, tuple[Dim, ...]],
    *,
    min_shapes: Shapes,
    opt_shapes: Shapes,
    max_shapes: Shapes,
) -> dict[str, ShapeRange]:
    """Return the ranges of a graph's inputs, whose own `shapes` are given; fixed inputs may be left out.

    As in trtexec an input with one of the three is fixed at it; a missing opt is max, a missing min or max
    is opt. Raises UsageError for an input that is unknown or missing, and for min > opt or opt > max.
    """
    given = [*min_shapes, *opt_shapes, *max_shapes]
    unknown = [name for name in given if name not in shapes]
    if unknown:
        raise _wrong(f"shapes for '{unknown[0]}'", f"shapes for {', '.join(shapes)}", "Correct the name")
    missing = [
        name for name, shape in shapes.items() if name not in given and any(isinstance(d, str) for d in shape)
    ]
    if missing:
        listed = ",".join(f"{name}:{_example(shapes[name])}" for name in missing)
        raise _wrong(
            f"no shapes for {', '.join(missing)}", "every dynamic input", f"Add {listed} to the shapes"
        )
    ranges = {}
    for name in dict.fromkeys(given):
        best = opt_shapes.get(name) or max_shapes.get(name) or min_shapes[name]
        ranges[name] = ShapeRange(min_shapes.get(name, best), best, max_shapes.get(name, best))
    return ranges


def removed_line(flag: str) -> str:
    """Return the one line that answers a flag of trtexec which changes nothing here."""
    return f"{flag} changes nothing: {({**REMOVED_SWITCHES, **REMOVED_OPTIONS})[flag]}."


def _example(shape: tuple[Dim, ...]) -> str:
    return "x".join("1" if isinstance(extent, str) else str(extent) for extent in shape)


def _wrong(got: str, expected: str, remedy: str) -> UsageError:
    return UsageError("profile", got=got, expected=expected, remedy=remedy)
