"""The float ONNX that every other quantizer starts from, and which of its nodes computes which layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from accuquant._util.files import atomic_write
from accuquant.export.read.trace import trace
from accuquant.graph.constants import constant_weight
from accuquant.graph.vocabulary import LAYER_OPS
from accuquant.networks.network import float_weights
from accuquant.pipelines.source import Source
from accuquant.qparams import fingerprint


@dataclass(frozen=True)
class FloatGraph:
    """A float .onnx. `nodes` maps a layer's name to (node name, output name) of what computes it."""

    path: Path
    nodes: dict[str, tuple[tuple[str, str], ...]]

    def node_names(self, layers: tuple[str, ...]) -> list[str]:
        """Return the names of the nodes that compute `layers`."""
        return [node for layer in layers for node, _ in self.nodes[layer]]


def open_float_graph(source: Source, path: Path) -> FloatGraph:
    """Return the float network of `source` as ONNX; `path` is written where it does not exist yet.

    Nodes are matched to layers by the content of their weights. The timestep input is float32 [1].
    """
    if not path.is_file():
        with atomic_write(path) as temporary:
            ir.save(trace(source.network, source.signature), temporary)
    layer_of = {fingerprint(weight): name for name, weight in float_weights(source.network).items()}
    nodes: dict[str, tuple[tuple[str, str], ...]] = {}
    for node in ir.load(path).graph:
        weight = constant_weight(node) if node.op_type in LAYER_OPS else None
        layer = layer_of.get(fingerprint(np.asarray(weight.load()))) if weight is not None else None
        if layer is not None:
            nodes[layer] = (*nodes.get(layer, ()), (node.name or "", node.outputs[0].name or ""))
    return FloatGraph(path, nodes)
