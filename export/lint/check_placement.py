"""The linter's rules about where QDQ pairs stand in a graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from accuquant.export.lint.check_graph import FloatArray, GraphView, Violation, input_name, label


def unpaired_quantize(graph: GraphView) -> Iterator[Violation]:
    """Report QuantizeLinear nodes whose levels something else than DequantizeLinear reads.

    TensorRT documents int8 kernels for Q -> DQ pairs alone; whether it moves a pair over what stands
    between the two depends on the operator and the release.
    """
    for node in graph.select("QuantizeLinear"):
        others = [read.node for read in graph.readers(node) if read.node.op_type != "DequantizeLinear"]
        if others:
            found = f"{others[0].op_type} '{label(others[0])}' reads its levels"
        elif node.output[0] in graph.outputs:
            found = "its levels are a graph output"
        elif not graph.readers(node):
            found = "nothing reads its levels"
        else:
            continue
        yield Violation(
            "unpaired-quantize",
            label(node),
            f"{found}, expected DequantizeLinear",
            "Put DequantizeLinear with the same scale directly after it, or remove it",
        )


def unpaired_dequantize(graph: GraphView) -> Iterator[Violation]:
    """Report DequantizeLinear nodes that read neither a constant nor a QuantizeLinear.

    TensorRT documents fusions for pairs and for constant weights alone.
    """
    for node in graph.select("DequantizeLinear"):
        producer = graph.producer(node)
        if graph.is_constant(input_name(node, 0)) or (producer and producer.op_type == "QuantizeLinear"):
            continue
        origin = f"{producer.op_type} '{label(producer)}'" if producer else "a graph input"
        yield Violation(
            "unpaired-dequantize",
            label(node),
            f"its levels come from {origin}, expected QuantizeLinear or a constant",
            "Put QuantizeLinear with the same scale directly before it",
        )


def untied_concat(graph: GraphView) -> Iterator[Violation]:
    """Report Concat nodes whose quantized inputs and output do not share one scale.

    An int8 concatenation only copies bytes. Where the scales differ TensorRT requantizes each input with
    a kernel of its own, which costs more than int8 gains.
    """
    for node in graph.select("Concat"):
        scales = [
            graph.scale(producer)
            for index in range(len(node.input))
            if (producer := graph.producer(node, index)) is not None and graph.is_activation(producer)
        ]
        if scales:
            scales += [
                graph.scale(read.node)
                for read in graph.readers(node)
                if read.node.op_type == "QuantizeLinear"
            ]
        found = [scale for scale in scales if scale is not None]
        if any(not np.array_equal(found[0], scale) for scale in found[1:]):
            yield Violation(
                "untied-concat",
                label(node),
                f"its inputs and output have the scales {_listed(found)}, expected one",
                "Remove the QDQ pairs before it and quantize after it, at the layer that reads it",
            )


def double_residual(graph: GraphView) -> Iterator[Violation]:
    """Report Add nodes that sum two dequantized activations.

    TensorRT fuses the sum into the convolution of one branch while its accumulator is still float; a pair
    on that branch too breaks the fusion.
    """
    for node in graph.select("Add"):
        sources = [graph.producer(node, index) for index in (0, 1)]
        if all(graph.is_activation(source) for source in sources):
            yield Violation(
                "double-residual",
                label(node),
                f"both inputs are dequantized ({_named(sources)}), expected one at most",
                "Keep the QDQ pair of the residual branch and remove the one after the convolution",
            )


def _listed(scales: list[FloatArray]) -> str:
    return ", ".join(dict.fromkeys(f"{scale.flat[0]:.6g}" if scale.size else "none" for scale in scales))


def _named(nodes: list[onnx.NodeProto | None]) -> str:
    return ", ".join(f"'{label(node)}'" for node in nodes if node is not None)


RULES = (unpaired_quantize, unpaired_dequantize, untied_concat, double_residual)
