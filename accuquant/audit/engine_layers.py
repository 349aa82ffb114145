"""The layers of a finished engine, and how to read them from TensorRT's verbose log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

#: TensorRT's element types -> bytes an element.
DTYPE_BYTES = {
    "Float": 4.0,
    "Half": 2.0,
    "BFloat16": 2.0,
    "Int64": 8.0,
    "Int32": 4.0,
    "Int8": 1.0,
    "UInt8": 1.0,
    "Bool": 1.0,
    "FP8": 1.0,
    "Int4": 0.5,
    "FP4": 0.5,
}
#: Which engine runs a layer: each has words of its own for what a layer is.
Library = Literal["tensorrt", "openvino", "onnxruntime"]
#: A line that describes a layer, whatever stands before it (the severity).
_LAYER_LINE = re.compile(r"^(?:[A-Z]+: ?|\[[^\]]*\] ?)*Name: (?=.*\bLayerType: )")
_FIELD = re.compile(r"(?:^|, )([A-Z]\w*): ")
#: "[ONNX Layer: a][ONNX Layer: b]", with a control character between the two where nodes were merged.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]?\[ONNX Layer: |$)")
_SUFFIX = re.compile(r"_myl\d+_\d+$")
_TOKEN = re.compile(r"[A-Z][a-z]+")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer of an engine reads or writes, e.g. Int8 [1, 128, 32, 32]."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements; extents that the engine leaves open count as one."""
        count = 1
        for extent in self.shape:
            count *= max(extent, 1)
        return count

    @property
    def num_bytes(self) -> float:
        """The bytes of all elements. Raises KeyError for an element type that is not in DTYPE_BYTES."""
        return self.size * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of an engine, with the ONNX nodes that it computes.

    `kind` is the compiler's word: "correlation" (convolution), "gemm", "kgen" (a generated kernel that
    fuses pointwise operations and reductions), "runtime_fusion", "runtime_function"; OpenVINO's layer type;
    ONNX Runtime's operator. `implementation` is the kernel where a library names it
    ("brgconv_avx512_amx_i8"), `milliseconds` what it takes in a run, where it was run.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx_nodes: tuple[str, ...]
    library: Library = "tensorrt"
    implementation: str = ""
    milliseconds: float | None = None

    @property
    def operations(self) -> tuple[str, ...]:
        """What a generated kernel does, read from its name: __myl_SiluMulRoun -> Silu, Mul, Roun."""
        stem = _SUFFIX.sub("", self.name)
        return tuple(_TOKEN.findall(stem.removeprefix("__myl_"))) if stem.startswith("__myl_") else ()

    @property
    def precision(self) -> str:
        """The element type of what it computes on: its widest-shaped input, e.g. "Int8"."""
        tensors = self.inputs or self.outputs
        return max(tensors, key=lambda tensor: tensor.size).dtype if tensors else "none"

    @property
    def traffic(self) -> float:
        """The bytes that it reads and writes, constants included, if it touches each element once."""
        tensors = (*self.inputs, *self.constants, *self.outputs)
        return sum(tensor.num_bytes for tensor in tensors)

    @property
    def reads_levels(self) -> bool:
        """Whether it reads int8 or FP8 activations; a convolution may read the residual it adds in float."""
        return self.levels_type is not None

    @property
    def levels_type(self) -> str | None:
        """The type of the quantized activations that it reads: "Int8" or "FP8"; None where there are none.

        A product that reads a float operand as well casts the levels, and computes in float.
        """
        read = {tensor.dtype for tensor in self.inputs}
        if read & {"Int8", "UInt8"}:
            return "Int8"
        by_itself = self.kind in ("correlation", "gemm") or read == {"FP8"}
        return "FP8" if "FP8" in read and by_itself else None


@dataclass(frozen=True)
class EngineDescription:
    """Everything that a library says of the finished engine.

    `not_understood` holds the lines of a log that describe a layer in a form that is not known here.
    """

    layers: tuple[EngineLayer, ...]
    not_understood: tuple[str, ...] = ()
    weight_bytes: int | None = None
    activation_bytes: int | None = None

    def layers_of(self, node: str) -> tuple[EngineLayer, ...]:
        """Return the layers that compute the ONNX node called `node`, in the engine's order."""
        return self._by_node.get(node, ())

    @cached_property
    def is_half(self) -> bool:
        """Whether more kernels write half precision than float32."""
        outputs = [tensor.dtype for layer in self.layers for tensor in layer.outputs]
        return outputs.count("Half") + outputs.count("BFloat16") > outputs.count("Float")

    @cached_property
    def _by_node(self) -> dict[str, tuple[EngineLayer, ...]]:
        found: dict[str, tuple[EngineLayer, ...]] = {}
        for layer in self.layers:
            for node in layer.onnx_nodes:
                found[node] = (*found.get(node, ()), layer)
        return found


def read_engine_layers(log: Iterable[str]) -> EngineDescription:
    """Read the layers from `log`, the lines of a build with detailed profiling verbosity."""
    layers: list[EngineLayer] = []
    failed: list[str] = []
    totals: dict[str, int] = {}
    for line in log:
        for key, pattern in (("weights", _WEIGHTS), ("activations", _ACTIVATIONS)):
            if found := pattern.search(line):
                totals[key] = int(found[1])
        start = _LAYER_LINE.match(line)
        if start is None:
            continue
        layer = _layer(line[start.end() - len("Name: ") :].rstrip())
        if layer is None:
            failed.append(line.rstrip())
        else:
            layers.append(layer)
    return EngineDescription(tuple(layers), tuple(failed), totals.get("weights"), totals.get("activations"))


def _layer(text: str) -> EngineLayer | None:
    """Parse one description, or return None where it has another form."""
    fields = _fields(text)
    if "LayerType" not in fields or "Inputs" not in fields or "Outputs" not in fields:
        return None
    tensors = {key: _tensors(fields.get(key, "[]")) for key in ("Inputs", "Constants", "Outputs")}
    if any(value is None for value in tensors.values()):
        return None
    name = fields["Name"]
    return EngineLayer(
        name=name,
        kind=fields["LayerType"],
        inputs=tensors["Inputs"] or (),
        constants=tensors["Constants"] or (),
        outputs=tensors["Outputs"] or (),
        onnx_nodes=_nodes(name, fields.get("Metadata", "")),
    )


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """Return the ONNX nodes of a layer; the metadata names ten at most, a merged gemm's name all."""
    listed = _ONNX_LAYER.findall(metadata)
    named = [] if name.startswith("__my") else _SUFFIX.sub("", name).split("+")
    return tuple(dict.fromkeys((*listed, *named)))


def _fields(text: str) -> Mapping[str, str]:
    """Split "Name: a, LayerType: b, Inputs: [ { Name: c } ]" at its outermost level."""
    starts = [found for found in _FIELD.finditer(text) if _depth_is_zero(text, found.start())]
    ends = [found.start() for found in starts[1:]] + [len(text)]
    return {found[1]: text[found.end() : end].strip() for found, end in zip(starts, ends, strict=True)}


def _depth_is_zero(text: str, position: int) -> bool:
    before = text[:position]
    return before.count("{") == before.count("}") and before.count("[") == before.count("]")


def _tensors(text: str) -> tuple[EngineTensor, ...] | None:
    """Parse "[ { Name: a, Dimensions: [1,2], ..., Datatype: Half, ... }, ...]", or return None."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    found = []
    for body in re.findall(r"\{(.*?)\}", text):
        fields = _fields(body.strip())
        shape = re.fullmatch(r"\[([-\d, ]*)\]", fields.get("Dimensions", ""))
        if shape is None or "Name" not in fields or fields.get("Datatype") not in DTYPE_BYTES:
            return None
        extents = tuple(int(number) for number in shape[1].split(",") if number.strip())
        found.append(EngineTensor(fields["Name"], extents, fields["Datatype"]))
    return tuple(found)
