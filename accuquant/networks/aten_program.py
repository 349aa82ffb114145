"""A network without its Python class: layers, and ATen operations in a fixed order, as plain data.

A file can come from anybody, so what it may ask for is listed here: functions of torch that compute tensors
from tensors, and change nothing. torch's own .pt2 files evaluate expressions when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from accuquant._util.facts import FactsError, Name, Text, as_facts

_OPERATION = re.compile(r"aten\.(\w+)\.(\w+)")
#: Operations beside torch's core and pointwise ones, which carry no tag.
_COMPOSITE = frozenset(
    """
    _to_copy _unsafe_view adaptive_avg_pool2d alias arange avg_pool2d batch_norm channel_shuffle chunk
    contiguous conv1d conv2d conv3d conv_transpose2d cosine_similarity detach dropout einsum expand_as
    feature_dropout flatten full group_norm instance_norm layer_norm lift_fresh_copy linalg_vector_norm
    linear linspace matmul max_pool2d movedim narrow norm numel ones ones_like pad permute
    pixel_shuffle pixel_unshuffle reshape rms_norm scaled_dot_product_attention softmax split square
    squeeze stack std sum_to_size sym_size t tile to transpose type_as unbind unflatten unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view_as where zeros zeros_like
    """.split()  # noqa: SIM905
)
#: Plain arithmetic on extents of tensors.
_ARITHMETIC: dict[str, Any] = {
    "getitem": lambda values, index: values[index],
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
}
_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool", "uint8")
_LAYOUTS: dict[str, Any] = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
}
_Count = Annotated[int, Meta(ge=0, le=1 << 20)]
_Two = Annotated[tuple[_Count, ...], Meta(min_length=2, max_length=2)]


@dataclass(frozen=True)
class LayerFacts:
    """A layer that can be quantized; its weight and bias lie under its name among the tensors."""

    kind: str
    stride: _Two = (1, 1)
    padding: _Two = (0, 0)
    output_padding: _Two = (0, 0)
    dilation: _Two = (1, 1)
    groups: Annotated[int, Meta(ge=1, le=1 << 20)] = 1


@dataclass(frozen=True)
class Step:
    """One operation, or a call of a layer: `name` is its value; arguments refer to values by {"value": name}.

    Beside numbers, texts, booleans, None and lists, an argument is {"tensor": name}, {"dtype": "float32"},
    {"layout": "contiguous_format"}, {"float": "inf"} or {"device": "input"}.
    """

    name: Name
    operation: Text = ""
    layer: Text = ""
    arguments: tuple[Any, ...] = ()
    keywords: dict[Text, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """What a network computes from `input`: `steps` in their order, the value `output` at the end."""

    input: Name
    output: Name
    layers: dict[Text, LayerFacts]
    steps: tuple[Step, ...]

    @classmethod
    def from_dict(cls, data: Any) -> Program:
        """Read JSON values. Raises FactsError for an operation that is not listed, or an unknown value."""
        program = as_facts(data, cls)
        known = {program.input}
        for step in program.steps:
            if step.layer:
                if step.layer not in program.layers:
                    raise FactsError(f"step '{step.name}': no layer '{step.layer}'")
            else:
                operation(step.operation)
            for item in (*step.arguments, *step.keywords.values()):
                _check_argument(item, known, step.name)
            known.add(step.name)
        if program.output not in known:
            raise FactsError(f"no value '{program.output}'")
        return program


def operation(name: str) -> Any:
    """Return the function "aten.relu.default", or "getitem". Raises FactsError for one that is not listed."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    match = _OPERATION.fullmatch(name)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    found = getattr(packet, match[2], None) if match and packet is not None else None
    if found is None or not is_listed(found):
        raise FactsError(f"operation '{name}', which is none that computes tensors from tensors alone")
    return found


def is_listed(function: Any) -> bool:
    """Say whether an operation of torch may be part of a program."""
    if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
        return False
    name, tags = function.overloadpacket.__name__, function.tags
    if function._schema.is_mutable:
        return False
    if torch.Tag.nondeterministic_seeded in tags and name not in ("scaled_dot_product_attention", "dropout"):
        return False
    return torch.Tag.core in tags or torch.Tag.pointwise in tags or name in _COMPOSITE


class AtenNetwork(nn.Module):
    """A program with its tensors: the layers are modules under their own names, all else is computed as is.

    Raises FactsError where tensors are missing or do not fit a layer.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._program = program
        used: set[str] = set()
        for name, facts in program.layers.items():
            weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
            if weight is None:
                raise FactsError(f"layer '{name}': no tensor '{name}.weight'")
            used |= {f"{name}.weight", f"{name}.bias"}
            _put(self, name, _layer(name, facts, weight, bias))
        for name, tensor in tensors.items():
            if name not in used:
                self.register_buffer(_buffer(name), tensor)
        for step in program.steps:
            for item in (*step.arguments, *step.keywords.values()):
                for missing in _named(item, "tensor"):
                    if _buffer(missing) not in self._buffers:
                        raise FactsError(f"step '{step.name}': no tensor '{missing}'")

    @property
    def ends(self) -> tuple[str, ...]:
        """The first and the last layer, which take the input in and paint the output."""
        called = [step.layer for step in self._program.steps if step.layer]
        return tuple(dict.fromkeys((*called[:1], *called[-1:])))

    def compute(self, given: Tensor) -> Tensor:
        """Return the program's output for its input."""
        values: dict[str, Any] = {self._program.input: given}
        for step in self._program.steps:
            arguments = [self._resolved(item, values, given) for item in step.arguments]
            if step.layer:
                values[step.name] = self.get_submodule(step.layer)(*arguments)
                continue
            keywords = {k: self._resolved(item, values, given) for k, item in step.keywords.items()}
            values[step.name] = operation(step.operation)(*arguments, **keywords)
        output: Tensor = values[self._program.output]
        return output

    def _resolved(self, item: Any, values: Mapping[str, Any], given: Tensor) -> Any:
        if isinstance(item, (list, tuple)):
            return [self._resolved(one, values, given) for one in item]
        if not isinstance(item, dict):
            return item
        ((kind, name),) = item.items()
        if kind == "value":
            return values[name]
        if kind == "tensor":
            return self._buffers[_buffer(name)]
        if kind == "dtype":
            return getattr(torch, name)
        if kind == "layout":
            return _LAYOUTS[name]
        return given.device if kind == "device" else float(name)


def _buffer(name: str) -> str:
    return f"constant_{name.replace('.', '_')}"


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Register `layer` as root.a.b for the name "a.b"."""
    *above, last = name.split(".")
    try:
        for part in above:
            if part not in root._modules:
                root.add_module(part, nn.Module())
            root = root.get_submodule(part)
        root.add_module(last, layer)
    except KeyError as fault:
        raise FactsError(f"layer '{name}': {fault}") from fault


#: skip_init of torch has no annotations.
_uninitialized: Any = nn.utils.skip_init


def _layer(name: str, facts: LayerFacts, weight: Tensor, bias: Tensor | None) -> nn.Module:
    shape, has_bias = weight.shape, bias is not None
    convolutions: dict[str, type[nn.Conv2d] | type[nn.ConvTranspose2d]] = {
        "conv2d": nn.Conv2d,
        "conv_transpose2d": nn.ConvTranspose2d,
    }
    made: nn.Module
    if facts.kind == "linear" and weight.ndim == 2:
        made = _uninitialized(nn.Linear, shape[1], shape[0], bias=has_bias)
    elif facts.kind in convolutions and weight.ndim == 4:
        transposed = facts.kind == "conv_transpose2d"
        inputs, outputs = (
            (shape[0], shape[1] * facts.groups) if transposed else (shape[1] * facts.groups, shape[0])
        )
        more = {"output_padding": facts.output_padding} if transposed else {}
        made = _uninitialized(
            convolutions[facts.kind], inputs, outputs, tuple(shape[2:]), bias=has_bias, stride=facts.stride,
            padding=facts.padding, dilation=facts.dilation, groups=facts.groups, **more,
        )  # fmt: skip
    else:
        raise FactsError(f"layer '{name}': kind '{facts.kind}' with a weight of shape {list(shape)}")
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    try:
        made.load_state_dict(state)
    except RuntimeError as fault:
        raise FactsError(f"layer '{name}': {str(fault).splitlines()[-1].strip()}") from fault
    return made


def _check_argument(item: Any, known: set[str], step: str) -> None:
    for value in _named(item, "value"):
        if value not in known:
            raise FactsError(f"step '{step}': no value '{value}' before it")
    allowed = {"dtype": _DTYPES, "layout": tuple(_LAYOUTS), "device": ("input",), "float": ("inf", "-inf")}
    for one in _dicts(item):
        if len(one) != 1 or not isinstance(next(iter(one.values())), str):
            raise FactsError(f"step '{step}': argument {one!r}")
        ((kind, name),) = one.items()
        if kind not in ("value", "tensor") and name not in allowed.get(kind, ()):
            raise FactsError(f"step '{step}': argument {one!r}")


def _dicts(item: Any) -> list[dict[str, Any]]:
    if isinstance(item, dict):
        return [item]
    return (
        [d for one in item for d in _dicts(one)]
        if isinstance(item, Sequence) and not isinstance(item, str)
        else []
    )


def _named(item: Any, kind: str) -> list[str]:
    return [one[kind] for one in _dicts(item) if kind in one]
