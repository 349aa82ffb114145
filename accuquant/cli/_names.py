"""The names of the commands, and what `accuquant --help` says of each."""

from __future__ import annotations

#: Command -> its line in the help. Each is `command` in the module of accuquant.cli that is called as it is;
#: the lines stand here so that the help need not import them all.
COMMANDS = {
    "demo": "Take a bundled model to int8, the whole way.",
    "calibrate": "Learn int8 scales for a pipeline.",
    "export": "Write an ONNX model with int8 weights.",
    "check": "Lint an ONNX model for TensorRT's int8 rules.",
    "audit": "Say what an engine makes of a model.",
    "build": "Compile TensorRT engines, with or without a GPU.",
    "sample": "Sample images from an exported model.",
    "verify": "Compare an exported model with FP32.",
    "evaluate": "Judge an exported model on many images.",
    "bench": "Time every engine, and say which to use.",
    "push": "Publish an exported model on the Hub.",
    "doctor": "Say what is installed and what works.",
}
