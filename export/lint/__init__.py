"""The linter: TensorRT's int8 rules, node by node."""
