"""Observation: a recipe for a float .onnx alone, from what its layers see in a few calls."""
