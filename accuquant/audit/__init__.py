"""The audit: what a TensorRT compiler made of an ONNX graph, read from its log on a machine without a GPU."""
