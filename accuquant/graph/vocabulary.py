"""The vocabulary of an exported graph: its metadata keys, and which operators are layers."""

from __future__ import annotations

#: Node metadata that holds the recipe's name of the layer that a node computes.
LAYER_KEY = "accuquant.layer"

#: Operator -> the layer kind of a recipe that it computes.
LAYER_KINDS = {"Conv": "conv2d", "ConvTranspose": "conv_transpose2d", "Gemm": "linear", "MatMul": "linear"}

#: Graph metadata that no file holds: the Signature in the names that a foreign graph has for its inputs.
SIGNATURE_KEY = "accuquant.signature"

#: Model metadata of an exported .onnx: how far it is from its source, as JSON.
COMPARED_KEY = "accuquant.compared"
