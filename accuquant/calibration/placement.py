"""Placement: which layers are quantized and which stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from accuquant.errors import UsageError
from accuquant.network import quantizable_layers

#: Layers that stay float unless --include names them. A name without * is a whole name: blocks inside a
#: network have a `proj_out` too.
DEFAULT_EXCLUDE = (
    # first and last layer: all of the image passes through them
    "conv_in",
    "conv_out",
    "pos_embed.proj",
    "x_embedder",
    "norm_out.linear",
    "proj_out",
    "proj_out_1",
    "proj_out_2",
    # 1x1 shortcuts carry the residual stream and cost few operations
    "*conv_shortcut",
    # what embeds the timestep, classes and pooled text: one row a sample, nothing to gain
    "time_embedding.*",
    "add_embedding.*",
    "class_embedding.*",
    "time_proj*",
    "*time_emb_proj",
    "time_text_embed.*",
    "adaln_single.*",
    "*.emb.timestep_embedder.*",
    # modulation of transformer blocks (adaLN): one row a sample, and it scales every token
    "*.norm1.linear",
    "*.norm1_context.linear",
    "*.norm.linear",
    # text enters once, in its encoder's range, which has outliers
    "context_embedder",
    "caption_projection.*",
)


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

    A layer is left in float where `exclude` or DEFAULT_EXCLUDE matches it; `include` overrides the
    defaults. Layers that the network never runs are left out. Raises UsageError for a pattern that
    matches nothing and where no layer is left.
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
    quantized = [name for name in names if not _is_float(name, include, exclude)]
    if not quantized:
        raise UsageError(
            "--exclude",
            got="patterns that leave no layer to quantize",
            expected="at least one layer",
            remedy="Exclude fewer layers",
        )
    kept = set(quantized)
    return Placement(tuple(quantized), tuple(n for n in names if n not in kept), macs)


def _is_float(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return True
    if any(fnmatchcase(name, pattern) for pattern in include):
        return False
    return any(fnmatchcase(name, pattern) for pattern in DEFAULT_EXCLUDE)
