"""The vocabulary of an exported graph: metadata keys, the roles of nodes, which operators are layers."""

from __future__ import annotations

from enum import Enum

#: Node metadata: the recipe's name of the layer that a node computes, or the Role of what a lowering put in.
LAYER_KEY = "accuquant.layer"
ROLE_KEY = "accuquant.role"

#: Model metadata.
VERSION_KEY = "accuquant.version"
GROUP_EDGES_KEY = "accuquant.group_edges"
GROUP_KEY = "accuquant.group"
LOWERING_KEY = "accuquant.lowering"
PRECISION_KEY = "accuquant.precision"
SIGNATURE_KEY = "accuquant.signature"
RECIPE_KEY = "accuquant.recipe_sha256"
CALIBRATION_KEY = "accuquant.calibration"

#: Operator -> the layer kind of a recipe that it computes.
LAYER_KINDS = {"Conv": "conv2d", "ConvTranspose": "conv_transpose2d", "Gemm": "linear", "MatMul": "linear"}
#: Model metadata of an exported .onnx: how far it is from its source, as JSON.
COMPARED_KEY = "accuquant.compared"

#: The operators that multiply and accumulate: what is quantized, and what decides an engine's speed.
LAYER_OPS = frozenset(LAYER_KINDS)


class Role(str, Enum):
    """What a node does that quantization put into a graph; it stands in the node's metadata.

    x -> [CAST] -> [DIVIDE by a FACTOR] -> [SHIFT] -> [CLIP] -> [PAD] -> QUANTIZE -> DEQUANTIZE
      -> the layer, which reads its weight from [WIDEN] -> WEIGHT
      -> [CAST] -> [RESTORE by a FACTOR] -> [BIAS] -> [CAST]

    A node's name says the same to people, and is no protocol: names are made unique at the end.
    """

    GROUP_INDEX = "group_index"  #: the step group, a scalar
    FACTOR = "factor"  #: what DIVIDE divides by and RESTORE multiplies with, where the graph computes it
    CAST = "cast"  #: to the type that the other nodes compute in, and back
    DIVIDE = "divide"
    SHIFT = "shift"  #: adds the zero-point
    CLIP = "clip"  #: to the levels of fewer than 8 bits
    PAD = "pad"  #: pads with the zero-point, in place of the convolution
    QUANTIZE = "quantize"  #: the pair of an activation
    DEQUANTIZE = "dequantize"
    CONCAT = "concat"  #: concatenates the parts that have pairs of their own
    WEIGHT = "weight"  #: dequantizes a weight
    WIDEN = "widen"  #: casts the 4-bit levels of a weight to int8
    RESTORE = "restore"
    BIAS = "bias"  #: adds the bias, less what the shift added
    SHIFTED_BIAS = "shifted_bias"  #: makes what BIAS adds, where the graph computes it
    JOIN = "join"  #: Concat, Add and Split of products that share what follows them
