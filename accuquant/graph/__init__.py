"""ONNX graphs, on onnx-ir: what passes, linter, observation and audit share."""
