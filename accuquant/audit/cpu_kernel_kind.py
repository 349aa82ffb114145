"""Sort the kernels of OpenVINO and ONNX Runtime by what they are there for."""

from __future__ import annotations

from collections.abc import Mapping

from accuquant.audit.engine_layers import EngineLayer, EngineTensor

#: OpenVINO's layer types and ONNX Runtime's operators -> the kind of kernel.
_KINDS = {
    "convolution": (
        {"Convolution", "Deconvolution"},
        {"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "NhwcFusedConv", "QLinearConv"},
    ),
    "gemm": (
        {"FullyConnected", "MatMul"},
        {
            "DynamicQuantizeMatMul",
            "FusedGemm",
            "FusedMatMul",
            "Gemm",
            "MatMulInteger",
            "MatMulIntegerToFloat",
        },
        {"QGemm", "QLinearMatMul"},
    ),
    "attention": (
        {"MHA", "PagedAttention", "QKVProjection", "ScaledDotProductAttention"},
        {"Attention", "MultiHeadAttention", "QAttention"},
    ),
    "normalization": (
        {"GroupNormalization", "MVN", "NormalizeL2", "RMS"},
        {"GroupNorm", "InstanceNormalization", "LayerNormalization", "SimplifiedLayerNormalization"},
        {"SkipLayerNormalization"},
    ),
    "pointwise": (
        {"Eltwise", "Math", "Select", "Subgraph"},
        {"Add", "And", "BiasGelu", "BiasSplitGelu", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "FastGelu"},
        {
            "Gelu",
            "Greater",
            "GreaterOrEqual",
            "HardSigmoid",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "Max",
        },
        {"Min", "Mul", "Neg", "Not", "Pow", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QuickGelu"},
        {"Reciprocal", "Relu", "Round", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where"},
    ),
    "quantize": ({"DequantizeLinear", "FakeQuantize", "QuantizeLinear"},),
    "convert": ({"Cast", "Convert"},),
    "reformat": (
        {"DepthToSpace", "Flatten", "Identity", "ReorderInput", "ReorderOutput", "Reorder", "Reshape"},
        {"SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"},
    ),
    "copy": (
        {"Broadcast", "Concat", "Concatenation", "Expand", "Gather", "Interpolate", "Pad", "QLinearConcat"},
        {"Resize", "Slice", "Split", "StridedSlice", "Tile", "Upsample", "VariadicSplit"},
    ),
    "reduction": (
        {"Pooling", "Reduce", "Softmax", "Softmax_V13"},
        {"AveragePool", "GlobalAveragePool", "QLinearSoftmax", "ReduceL2", "ReduceMax", "ReduceMean"},
        {"ReduceSum"},
    ),
    "fill": ({"ConstantOfShape", "Range", "Shape", "ShapeOf"},),
}
_KIND_OF = {name: kind for kind, sets in _KINDS.items() for names in sets for name in names}
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization"})
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


def cpu_kernel_kind(layer: EngineLayer, operators: Mapping[str, str]) -> str:
    """Return which of KERNEL_KINDS `layer` is; `operators` maps a node of the ONNX graph to its operator.

    OpenVINO computes chains of pointwise operations in one "Subgraph", and attention or a float
    normalization where it fits.
    """
    kind = _KIND_OF.get(layer.kind, "other")
    done = [operators[node] for node in layer.onnx_nodes if node in operators]
    if kind == "reformat" and _types(layer.inputs) != _types(layer.outputs):
        return "convert"
    if kind != "pointwise":
        return kind
    if "MatMul" in done:
        return "attention"
    if done and set(done) <= _PAIR:
        return "quantize"
    if done and set(done) <= _NORMS:
        return "normalization"
    return "fused pointwise" if len(layer.onnx_nodes) > 1 else "pointwise"


def _types(tensors: tuple[EngineTensor, ...]) -> set[str]:
    return {tensor.dtype for tensor in tensors[:1]}
