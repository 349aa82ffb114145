"""The linter's rules about where QDQ pairs stand in a graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from accuquant.export.lint.check_graph import FloatArray, GraphView, Violation
from accuquant.graph.constants import is_constant
from accuquant.graph.neighbours import input_of, is_activation, label, producer, readers, select


def unpaired_quantize(view: GraphView) -> Iterator[Violation]:
    """Report QuantizeLinear nodes whose levels something else than DequantizeLinear reads.

    TensorRT documents int8 kernels for Q -> DQ pairs alone; whether it moves a pair over what stands
    between the two depends on the operator and the release.
    """
    for node in select(view.graph, "QuantizeLinear"):
        others = [read.node for read in readers(node) if read.node.op_type != "DequantizeLinear"]
        if others:
            found = f"{others[0].op_type} '{label(others[0])}' reads its levels"
        elif node.outputs[0].is_graph_output():
            found = "its levels are a graph output"
        elif not readers(node):
            found = "nothing reads its levels"
        else:
            continue
        yield Violation(
            "unpaired-quantize",
            label(node),
            f"{found}, expected DequantizeLinear",
            "Put DequantizeLinear with the same scale directly after it, or remove it",
        )


def unpaired_dequantize(view: GraphView) -> Iterator[Violation]:
    """Report DequantizeLinear nodes that read neither a constant nor a QuantizeLinear.

    TensorRT documents fusions for pairs and for constant weights alone.
    """
    for node in select(view.graph, "DequantizeLinear"):
        writer = producer(node)
        if is_constant(input_of(node, 0)) or (writer and writer.op_type == "QuantizeLinear"):
            continue
        origin = f"{writer.op_type} '{label(writer)}'" if writer else "a graph input"
        yield Violation(
            "unpaired-dequantize",
            label(node),
            f"its levels come from {origin}, expected QuantizeLinear or a constant",
            "Put QuantizeLinear with the same scale directly before it",
        )


def untied_concat(view: GraphView) -> Iterator[Violation]:
    """Report Concat nodes whose quantized inputs and output do not share one scale.

    An int8 concatenation only copies bytes. Where the scales differ TensorRT requantizes each input with
    a kernel of its own, which costs more than int8 gains.
    """
    for node in select(view.graph, "Concat"):
        scales = [
            view.scale(writer)
            for index in range(len(node.inputs))
            if (writer := producer(node, index)) is not None and is_activation(writer)
        ]
        if scales:
            scales += [
                view.scale(read.node) for read in readers(node) if read.node.op_type == "QuantizeLinear"
            ]
        found = [scale for scale in scales if scale is not None]
        if any(not np.array_equal(found[0], scale) for scale in found[1:]):
            yield Violation(
                "untied-concat",
                label(node),
                f"its inputs and output have the scales {_listed(found)}, expected one",
                "Remove the QDQ pairs before it and quantize after it, at the layer that reads it",
            )


def double_residual(view: GraphView) -> Iterator[Violation]:
    """Report Add nodes that sum two dequantized activations.

    TensorRT fuses the sum into the convolution of one branch while its accumulator is still float; a pair
    on that branch too breaks the fusion.
    """
    for node in select(view.graph, "Add"):
        sources = [producer(node, index) for index in (0, 1)]
        if all(is_activation(source) for source in sources):
            yield Violation(
                "double-residual",
                label(node),
                f"both inputs are dequantized ({_named(sources)}), expected one at most",
                "Keep the QDQ pair of the residual branch and remove the one after the convolution",
            )


def _listed(scales: list[FloatArray]) -> str:
    return ", ".join(dict.fromkeys(f"{scale.flat[0]:.6g}" if scale.size else "none" for scale in scales))


def _named(nodes: list[ir.Node | None]) -> str:
    return ", ".join(f"'{label(node)}'" for node in nodes if node is not None)


RULES = (unpaired_quantize, unpaired_dequantize, untied_concat, double_residual)
