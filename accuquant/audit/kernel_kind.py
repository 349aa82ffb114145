"""Sort an engine's kernels by what they are there for."""

from __future__ import annotations

from collections.abc import Mapping

from accuquant.audit.cpu_kernel_kind import cpu_kernel_kind
from accuquant.audit.engine_layers import EngineLayer

#: Every kind, in the order of a table. "pointwise" computes one operation alone, "copy" joins, splits or pads
#: tensors, "fill" writes a constant, "sync" makes one stream wait for another and is no
#: kernel. "reformat" moves what is there to another layout (of TensorRT also: casts it), "convert" casts it.
KERNEL_KINDS = (
    "convolution",
    "gemm",
    "attention",
    "normalization",
    "fused pointwise",
    "pointwise",
    "quantize",
    "convert",
    "reformat",
    "copy",
    "reduction",
    "fill",
    "other",
    "sync",
)
_COMPILER_KINDS = {"correlation": "convolution", "gemm": "gemm", "signal": "sync", "wait": "sync"}
_FUSED_WORK = {"Corr": "convolution", "Fc": "gemm", "Gemm": "gemm", "Mha": "attention", "Attn": "attention"}
#: Abbreviations in the names of generated kernels that compute nothing.
_MOVES = frozenset({"Cast", "Conc", "Copy", "Move", "Repl", "Resh", "Slic", "Tran"})
#: What QuantizeLinear becomes: a division by the (gathered) scale, a clip, a rounding, a cast.
_QUANTIZES = frozenset({"Gath", "Mul", "Div", "Min", "Max", "Roun", "Cast"})
_GENERATED = ("kgen", "runtime_fusion", "runtime_function")


def kernel_kind(layer: EngineLayer, operators: Mapping[str, str]) -> str:
    """Return which of KERNEL_KINDS `layer` is; `operators` maps a node of the ONNX graph to its operator.

    A "quantize" kernel does nothing but write levels: a QDQ pair that joined no other kernel.
    """
    if layer.library != "tensorrt":
        return cpu_kernel_kind(layer, operators)
    if layer.kind in _COMPILER_KINDS:
        return _COMPILER_KINDS[layer.kind]
    if layer.kind not in _GENERATED:
        return "other"
    if "_mha" in layer.name:
        return "attention"
    for operation in layer.operations:
        if operation in _FUSED_WORK:
            return _FUSED_WORK[operation]
    if not layer.inputs:
        return "fill"
    done = set(layer.operations)
    if done <= _MOVES:
        return "reformat"
    if _only_quantizes(layer, done, operators):
        return "quantize"
    return "fused pointwise"


def _only_quantizes(layer: EngineLayer, done: set[str], operators: Mapping[str, str]) -> bool:
    found = [operators.get(node) for node in layer.onnx_nodes]
    writes_fp8 = any(tensor.dtype == "FP8" for tensor in layer.outputs)  # a Cast, which rounds by itself
    rounds = "Roun" in done or (writes_fp8 and "Cast" in done)
    return "QuantizeLinear" in found and rounds and done <= _QUANTIZES | _MOVES
