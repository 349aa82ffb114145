"""What a compiled OpenVINO model runs, read from its runtime graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: What OpenVINO appends to the name of an ONNX node where it splits one, or moves a scale behind it.
_SUFFIXES = ("/WithoutBiases", "/WithoutBias", "/DequantizationMultiply", "/DequantizationSubtract")
_SINK = "/sink_port_"
#: OpenVINO's layer types that multiply and accumulate.
WORK_KINDS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})


@dataclass(frozen=True)
class ExecutedTensor:
    """An input or output of an executed node, with OpenVINO's word for its type ("u8").

    `constant` says that it is known when the model is compiled, `writer` names the node that
    writes it. `shape` is empty for a scalar, and where the compiled model leaves an extent open.
    """

    shape: tuple[int, ...]
    precision: str
    constant: bool = False
    writer: str = ""


@dataclass(frozen=True)
class ExecutedNode:
    """One node of the runtime graph.

    `kind` is OpenVINO's layer type ("Convolution", "Subgraph"), `implementation` the kernel
    ("brgconv_avx512_amx_i8"), `onnx_nodes` the nodes of the ONNX graph that it computes. `constant` says that
    it depends on no input of the model.
    """

    name: str
    kind: str
    implementation: str
    onnx_nodes: tuple[str, ...]
    inputs: tuple[ExecutedTensor, ...]
    outputs: tuple[ExecutedTensor, ...]
    constant: bool


def executed_nodes(compiled: Any) -> tuple[ExecutedNode, ...]:
    """Return every node of an openvino.CompiledModel in the order of execution; nothing is run.

    Constants, and what is computed from constants alone, are among them, and say so.
    """
    found: dict[str, ExecutedNode] = {}
    for operation in compiled.get_runtime_model().get_ordered_ops():
        node = _node(operation, found)
        found[node.name] = node
    return tuple(found.values())


def _node(operation: Any, before: dict[str, ExecutedNode]) -> ExecutedNode:
    facts = operation.get_rt_info()

    def fact(name: str) -> str:
        return str(facts[name].value) if name in facts else ""

    kind = fact("layerType") or operation.get_type_name()
    names = _split(fact("originalLayersNames"))
    if kind in WORK_KINDS:  # its own name may be missing there, where a pair stayed in float
        names.insert(0, operation.get_friendly_name())
    inputs = tuple(_input(port, before) for port in operation.inputs())
    precisions = fact("outputPrecisions").split(",")
    return ExecutedNode(
        name=operation.get_friendly_name(),
        kind=kind,
        implementation=fact("primitiveType"),
        onnx_nodes=tuple(dict.fromkeys(map(onnx_name, names))),
        inputs=inputs,
        outputs=tuple(
            ExecutedTensor(_shape(port), precisions[min(index, len(precisions) - 1)])
            for index, port in enumerate(operation.outputs())
        ),
        constant=kind == "Const" or (bool(inputs) and all(tensor.constant for tensor in inputs)),
    )


def _input(port: Any, before: dict[str, ExecutedNode]) -> ExecutedTensor:
    source = port.get_source_output()
    writer = before[source.get_node().get_friendly_name()]
    index = min(source.get_index(), len(writer.outputs) - 1)
    precision = writer.outputs[index].precision
    return ExecutedTensor(_shape(port), precision, writer.constant, writer.name)


def with_lost_names(
    nodes: tuple[ExecutedNode, ...], followers: Mapping[str, tuple[str, ...]]
) -> tuple[ExecutedNode, ...]:
    """Give the layers that no node names to the node that computes what follows them.

    OpenVINO calls a product and its bias, which it computes at once, by the name of the addition alone.
    `followers` maps each layer of the ONNX graph to the nodes that finish its output.
    """
    known = {name for node in nodes for name in node.onnx_nodes}
    work = {name: node.name for node in nodes if node.kind in WORK_KINDS for name in node.onnx_nodes}
    lost: dict[str, list[str]] = {}
    for layer, after in followers.items():
        if layer not in known and (found := [work[name] for name in after if name in work]):
            lost.setdefault(found[0], []).append(layer)
    return tuple(
        replace(node, onnx_nodes=(*lost[node.name], *node.onnx_nodes)) if node.name in lost else node
        for node in nodes
    )


def onnx_name(original: str) -> str:
    """Return the name of the ONNX node behind one of OpenVINO's names."""
    name = original.partition(_SINK)[0]
    while name.endswith(_SUFFIXES):  # a Linear of two axes is NODE/WithoutBiases/DequantizationMultiply
        name = name.rpartition("/")[0]
    return name


def _split(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def _shape(port: Any) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    return tuple(int(extent.get_length()) for extent in shape) if shape.is_static else ()
