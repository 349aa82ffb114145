"""Engines: from an exported ONNX model to TensorRT engines, compiled with or without a GPU."""

from __future__ import annotations

from accuquant.engines.compile import CompiledEngine, compile_engine
from accuquant.engines.options import BuildOptions, ShapeRange
from accuquant.engines.target import TARGETS, Target, parse_target, parse_targets

__all__ = [
    "TARGETS",
    "BuildOptions",
    "CompiledEngine",
    "ShapeRange",
    "Target",
    "compile_engine",
    "parse_target",
    "parse_targets",
]
