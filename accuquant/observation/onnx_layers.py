"""The layers of a float ONNX graph that can be quantized, and which of them stay float."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from accuquant.graph.constants import ConstantWeight, constant_weight
from accuquant.graph.vocabulary import LAYER_KINDS
from accuquant.qparams import fingerprint
from accuquant.scales.placement_patterns import DEFAULT_EXCLUDE

_WEIGHT_DIMENSIONS = {"conv2d": 4, "conv_transpose2d": 4, "linear": 2}
#: What exporters put before a module's name: torch's wrapper, Optimum's, this package's own.
_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPERS = ("network.", "unet.", "transformer.", "model.")


@dataclass(frozen=True)
class OnnxLayer:
    """One layer: its name, the nodes that compute it, its kind and its constant weight in torch's layout."""

    name: str
    nodes: tuple[ir.Node, ...]
    kind: str
    weight: ConstantWeight
    fingerprint: str


def find_layers(graph: ir.Graph) -> list[OnnxLayer]:
    """Return every Conv, ConvTranspose, Gemm and MatMul with a constant weight, in graph order.

    Nodes with one weight are one layer, because the exporter tells layers apart by what they hold.
    A layer is called as its weight is where an exporter kept the name ("conv_in" for "conv_in.weight"),
    else as its first node ("mid_block.attentions.0.to_q" for "/mid_block/attentions.0/to_q/MatMul").
    """
    layers: dict[tuple[str, str], OnnxLayer] = {}
    names: set[str] = set()
    for node in graph:
        kind = LAYER_KINDS.get(node.op_type)
        weight = constant_weight(node) if kind and node.domain == "" else None
        if kind is None or weight is None or len(weight.shape) != _WEIGHT_DIMENSIONS[kind]:
            continue
        key = (kind, fingerprint(weight.load()))
        if key in layers:
            layers[key] = replace(layers[key], nodes=(*layers[key].nodes, node))
            continue
        name = _layer_name(node, weight)
        while name in names:
            name += "_"
        names.add(name)
        layers[key] = OnnxLayer(name, (node,), kind, weight, key[1])
    return list(layers.values())


def place_layers(
    graph: ir.Graph, layers: Sequence[OnnxLayer], *, sample: str, timestep: str
) -> list[OnnxLayer]:
    """Return the layers to quantize, by where they stand in the graph and by name.

    Float stay: the first layers that `sample` passes through and the last before the output, what only
    the timestep reaches (its embedding, modulation), and names of the default placement (calibration/).
    A layer of several nodes stays float where one of them has to.
    """
    from_sample = _reached_from(graph, sample)
    from_timestep = _reached_from(graph, timestep)
    nodes = {node for layer in layers for node in layer.nodes}
    first = {n for n in nodes & from_sample if not _before(n) & nodes & from_sample}
    last = _last(graph, nodes)
    kept_float = first | last | (from_timestep - from_sample)
    return [
        layer
        for layer in layers
        if not kept_float.intersection(layer.nodes)
        and not any(fnmatchcase(layer.name, pattern) for pattern in DEFAULT_EXCLUDE)
    ]


def _layer_name(node: ir.Node, weight: ConstantWeight) -> str:
    if weight.initializer.endswith(".weight"):
        name = weight.initializer.removesuffix(".weight")
    else:
        name = _scope(node) or re.sub(rf"[./]{node.op_type}(_\d+)?$", "", node.name or "layer")
    name = name.strip("/").replace("/", ".")
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _scope(node: ir.Node) -> str:
    """Return the module that torch's exporter notes down with a node, "" where it does not."""
    try:
        *modules, _operator = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):  # an empty list, or text that another tool wrote
        return ""
    return str(modules[-1]) if modules else ""


def _reached_from(graph: ir.Graph, name: str) -> set[ir.Node]:
    """Return the nodes whose first inputs depend on the graph input `name`."""
    reached: set[ir.Node] = set()
    waiting = [value for value in graph.inputs if value.name == name]
    while waiting:
        for user, _ in waiting.pop().uses():
            if user not in reached:
                reached.add(user)
                waiting.extend(user.outputs)
    return reached


def _before(node: ir.Node) -> set[ir.Node]:
    """Return every node that `node` depends on."""
    return _closure(value.producer() for value in node.inputs if value is not None)


def _closure(start: Iterable[ir.Node | None]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node for node in start if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(p for v in node.inputs if v is not None and (p := v.producer()) is not None)
    return found


def _last(graph: ir.Graph, nodes: set[ir.Node]) -> set[ir.Node]:
    """Return the layers that no other layer lies behind."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    waiting = [producer for value in graph.outputs if (producer := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(node)
        else:
            waiting.extend(p for v in node.inputs if v is not None and (p := v.producer()) is not None)
    others = set().union(*(_before(node) for node in found)) if found else set()
    return found - others
