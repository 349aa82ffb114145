"""What the caller of an export may choose, checked before anything runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args, get_type_hints

from accuquant.errors import UsageError, unknown_name

Auto = Literal["auto"]
Lowering = Literal["rescale", "hybrid", "per-group"]
Precision = Literal["fp32", "fp16", "bf16"]
Affine = Literal["shift", "zero_point"]
FloatWeights = Literal["auto", "fp32", "fp16", "bf16"]
WeightStorage = Literal["int8", "int4"]
TextWeights = Literal["fp32", "int8"]

#: QDQ pairs with float16 scales need opset 19, Conv in bfloat16 needs 22.
_MIN_OPSET: dict[str, int] = {"auto": 19, "fp32": 19, "fp16": 19, "bf16": 22}
_DEFAULT_OPSET = 21
#: INT4 tensors, and Cast from them.
_INT4_OPSET = 21
#: The newest that torch's exporter and onnxscript's converter write.
_MAX_OPSET = 25
_TARGET = re.compile(r"cpu|gpu|sm\d{2,3}")


@dataclass(frozen=True)
class ExportOptions:
    """How a network is exported. Raises UsageError for a value, or two values, that cannot be.

    `target` is where it will run, for what is "auto": "cpu", "gpu" (of this machine), a compute capability
    like "sm89", or None, the GPU of this machine if it is usable and else the CPU.
    `lowering` "rescale" is one graph that derives the step group from the timestep, "hybrid" the same with
    one scale for all groups where TensorRT would lose a fusion, "per-group" one graph a group with constant
    scales.
    `precision` is what is not int8. `affine` "shift" writes zero-points as an addition around a symmetric QDQ
    pair, which every engine takes; "zero_point" writes them into the pair.
    `float_weights` is how weights of layers that stay float are stored in a graph that computes in fp32;
    "auto" is fp16 above 100 MB. `weight_storage` "int4" packs weights of at most 4 bits; engines compute the
    same. `opset` None is 21, or 22 for bf16. `external_data` keeps weights in a file
    beside the graph; None does above 2 GB, and where graphs share them. `dynamic` lets batch and image size
    of a pipeline vary. `whole_pipeline` adds text encoders and autoencoder, which compute in float32, so that
    Optimum loads the folder; `text_weights` "int8" stores the weights of these encoders in int8.
    """

    target: str | None = None
    lowering: Lowering | Auto = "auto"
    precision: Precision | Auto = "auto"
    affine: Affine | Auto = "auto"
    float_weights: FloatWeights = "auto"
    weight_storage: WeightStorage = "int8"
    opset: int | None = None
    external_data: bool | None = None
    dynamic: bool = True
    whole_pipeline: bool = False
    text_weights: TextWeights = "fp32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name(name.replace("_", "-"), str(getattr(self, name)), choices)
        if self.target is not None and not _TARGET.fullmatch(self.target):
            raise unknown_name("target", self.target, ("cpu", "gpu", "a compute capability like sm89"))
        choose_opset(self.opset, self.precision)
        if self.weight_storage == "int4" and self.written_opset < _INT4_OPSET:
            raise UsageError(
                "--weight-storage int4",
                got=f"--opset {self.written_opset}",
                expected=f"opset {_INT4_OPSET} or later, the first with INT4",
                remedy="Leave one of the two out",
            )
        if self.whole_pipeline and self.lowering == "per-group":
            raise UsageError(
                "--whole-pipeline",
                got="--lowering per-group, which writes one graph a step group",
                expected="rescale or hybrid: Optimum loads one graph",
                remedy="Leave one of the two out",
            )
        if self.text_weights != "fp32" and not self.whole_pipeline:
            raise UsageError(
                f"--text-weights {self.text_weights}",
                got="an export of the network alone",
                expected="text encoders beside it",
                remedy="Add --whole-pipeline, or leave --text-weights out",
            )

    @property
    def written_opset(self) -> int:
        """The opset of the graphs."""
        return choose_opset(self.opset, self.precision)


class ExportChoices(TypedDict, total=False):
    """The fields of ExportOptions, for those who name them one by one."""

    target: str | None
    lowering: Lowering | Auto
    precision: Precision | Auto
    affine: Affine | Auto
    float_weights: FloatWeights
    weight_storage: WeightStorage
    opset: int | None
    external_data: bool | None
    dynamic: bool
    whole_pipeline: bool
    text_weights: TextWeights


def choose_opset(opset: int | None, precision: Precision | Auto) -> int:
    """Return `opset`, or the default for `precision`. Raises UsageError where it is too low or too high."""
    lowest = _MIN_OPSET[precision]
    if opset is None:
        return max(lowest, _DEFAULT_OPSET)
    import onnx.defs

    highest = min(onnx.defs.onnx_opset_version(), _MAX_OPSET)
    if not lowest <= opset <= highest:
        raise UsageError(
            "--opset",
            got=f"{opset} with --precision {precision}",
            expected=f"{lowest} to {highest}",
            remedy=f"Give --opset {max(lowest, _DEFAULT_OPSET)}, or leave it out",
        )
    return opset


def _choices(hint: object) -> tuple[str, ...]:
    """Return the strings of a Literal, or of a union of them."""
    if isinstance(hint, str):
        return (hint,)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


#: Field -> the names that it takes, as its type says.
CHOICES: dict[str, tuple[str, ...]] = {
    name: _choices(get_type_hints(ExportOptions)[name])
    for name in ("lowering", "precision", "affine", "float_weights", "weight_storage", "text_weights")
}
