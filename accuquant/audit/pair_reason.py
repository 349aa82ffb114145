"""Why a QDQ pair did not fuse, and what to do about it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from accuquant.audit.engine_layers import EngineLayer
from accuquant.audit.pair_source import MOVES, PairSource
from accuquant.export.lint.check_graph import Violation
from accuquant.graph.neighbours import input_of, label, producer
from accuquant.graph.vocabulary import LAYER_OPS, Role

_FACTOR = (
    "its input is divided by the step group's factor, which is no constant",
    "Export with --lowering hybrid (constants where scales are close) or per-group (constants everywhere)",
)
_PADDING = (
    "its zero-point needs a padding with another value than zero, which is a kernel",
    "Calibrate with --symmetric, or leave out the zero-point of this layer",
)


@dataclass(frozen=True)
class Reason:
    """Why, and the remedy."""

    text: str
    remedy: str


def why_float(
    quantize: ir.Node,
    reader: ir.Node,
    work: EngineLayer | None,
    violations: Sequence[Violation],
) -> Reason:
    """Say why the node that reads the pair runs in float."""
    if reader.op_type not in LAYER_OPS:
        return Reason(
            f"{reader.op_type} reads it, which computes in float",
            "Remove this pair, and quantize at the convolution or matrix product behind it",
        )
    pairs = [producer(reader, index) for index in (0, 1)]
    for side, writer in zip(("activation", "weight"), pairs, strict=True):
        if writer is None or writer.op_type != "DequantizeLinear":
            return Reason(f"its {side} is not quantized", f"Quantize the {side} too, or remove this pair")
    named = {label(node) for node in (reader, quantize, *pairs) if node is not None}
    for violation in violations:
        if violation.node in named:
            return Reason(violation.message, violation.remedy)
    if work is not None and work.library != "tensorrt":
        return _why_float_on_cpu(work, pairs)
    seen = f"a {work.kind} kernel that reads {work.precision}" if work else "a float kernel"
    return Reason(f"the compiler chose {seen}", "Leave this layer out of the recipe")


def _why_float_on_cpu(work: EngineLayer, pairs: Sequence[ir.Node | None]) -> Reason:
    """Say why OpenVINO or ONNX Runtime runs a layer in float whose two operands have pairs."""
    kernel = f"kernel {work.implementation or work.kind}, which reads {work.precision}"
    if work.library == "onnxruntime" and "Conv" in work.kind:
        return Reason(
            "ONNX Runtime's int8 convolution writes int8, and nothing quantizes the output of this one",
            "Run it with --engine openvino, whose int8 convolutions write float",
        )
    weight = next((tensor.dtype for tensor in work.constants), "")
    if _has_zero_point(pairs[0]):
        return Reason(
            f"its pair has a zero-point inside, which this processor's int8 kernels do not take ({kernel})",
            "Export with --affine shift, or calibrate with --symmetric",
        )
    if weight in ("Int8", "UInt8"):
        return Reason(
            f"its int8 weight is widened to float inside the {kernel}: the pair before it stays in float",
            "Leave this layer out of the recipe (--exclude), or run it on a processor with int8 kernels",
        )
    return Reason(
        f"its pair stays in float ({kernel})",
        "Leave this layer out of the recipe (--exclude), or run it on a processor with int8 kernels",
    )


def _has_zero_point(dequantize: ir.Node | None) -> bool:
    """Say whether a pair has a zero-point other than the middle of its levels."""
    zero = None if dequantize is None else input_of(dequantize, 2)
    tensor = None if zero is None else ir.convenience.get_const_tensor(zero)
    if tensor is None:
        return False
    return bool((tensor.numpy() != (128 if tensor.dtype == ir.DataType.UINT8 else 0)).any())


def why_alone(source: PairSource, writers: Sequence[EngineLayer]) -> Reason:
    """Say why a kernel that does nothing else computes Q."""
    node = source.node
    if writers[0].library != "tensorrt" and source.lowers_with(Role.PAD):
        return Reason(*_PADDING)
    if node is None:
        return Reason("it reads an input of the graph, which no kernel computes", "None: one small kernel")
    if source.others:
        other = source.others[0]
        return Reason(
            f"{node.op_type} '{label(node)}' is also read in float, by {other.op_type} '{label(other)}'",
            "None where int8 is worth one more pass over the tensor; else --exclude this layer",
        )
    if node.op_type in MOVES:
        return Reason(
            f"{node.op_type} '{label(node)}' only moves data, so there is nothing to join",
            "None where int8 is worth one more pass over the tensor; else --exclude this layer",
        )
    done = "+".join(writers[0].operations) or writers[0].kind
    return Reason(
        f"the compiler did not join it to {node.op_type} '{label(node)}' (kernel {done})",
        "Compare with another placement (--against)",
    )


def why_split(source: PairSource, writers: Sequence[EngineLayer]) -> Reason:
    """Say why what Q could have joined takes more than one kernel."""
    if source.lowers_with(Role.DIVIDE):
        return Reason(*_FACTOR)
    if source.lowers_with(Role.PAD):
        return Reason(*_PADDING)
    if source.norm is not None and len(writers) == 1:
        return Reason(
            f"the compiler keeps {source.norm.op_type} '{label(source.norm)}' apart from what follows it",
            "None: it does so where no SiLU stands between them, and for tensors of few channels",
        )
    names = ", ".join("+".join(writer.operations) or writer.kind for writer in writers)
    return Reason(f"it takes {len(writers)} kernels ({names})", "Compare with another placement (--against)")
