"""Placement: which layers are quantized and which stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from accuquant.errors import UsageError
from accuquant.networks.network import quantizable_layers
from accuquant.scales.placement_patterns import stays_float


@dataclass(frozen=True)
class Placement:
    """The layers of one network, by name: those to quantize, those left in float, and their cost."""

    quantized: tuple[str, ...]
    float_layers: tuple[str, ...]
    macs: Mapping[str, int]

    @property
    def int8_share(self) -> float:
        """The share of all layers' multiply-accumulates that is quantized, 0 to 1."""
        total = sum(self.macs.values())
        return sum(self.macs.get(name, 0) for name in self.quantized) / total if total else 0.0

    def without(self, names: Sequence[str]) -> Placement:
        """Return a placement that leaves `names` in float too."""
        left = set(names)
        return Placement(
            tuple(n for n in self.quantized if n not in left),
            (*self.float_layers, *(n for n in self.quantized if n in left)),
            self.macs,
        )


def place(
    network: nn.Module,
    macs: Mapping[str, int],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Placement:
    """Choose the layers to quantize by name patterns (`*` matches any text).

    A layer is left in float where `exclude` or DEFAULT_EXCLUDE matches it, and at the `ends` of a generator;
    `include` overrides the defaults. Layers that the network never runs are left out. Raises UsageError for a
    pattern that matches nothing and where no layer is left.
    """
    names = [name for name in quantizable_layers(network) if name in macs]
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"--{option} '{pattern}'",
                    got="a pattern that matches no layer",
                    expected=f"a name like '{names[len(names) // 2]}', or a pattern with *",
                    remedy="Correct the pattern",
                )
    ends: Sequence[str] = getattr(network, "ends", ())
    quantized = [name for name in names if not stays_float(name, include, exclude, ends)]
    if not quantized:
        raise UsageError(
            "--exclude",
            got="patterns that leave no layer to quantize",
            expected="at least one layer",
            remedy="Exclude fewer layers",
        )
    kept = set(quantized)
    return Placement(tuple(quantized), tuple(n for n in names if n not in kept), macs)
