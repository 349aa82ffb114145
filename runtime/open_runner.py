"""Open a model by the name of an engine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from accuquant.errors import UsageError
from accuquant.runtime.onnxruntime_runner import OnnxRuntimeRunner
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.runner import Runner
from accuquant.runtime.tensorrt_runner import TensorRtRunner

#: Name on the command line -> what makes the runner. A new backend is one line here.
_ENGINES: dict[str, Callable[..., Runner]] = {
    "openvino": OpenVinoRunner,
    "openvino-gpu": partial(OpenVinoRunner, device="GPU"),
    "openvino-npu": partial(OpenVinoRunner, device="NPU"),
    "onnxruntime": OnnxRuntimeRunner,
    "onnxruntime-cuda": partial(OnnxRuntimeRunner, provider="cuda"),
    "onnxruntime-tensorrt": partial(OnnxRuntimeRunner, provider="tensorrt"),
    "onnxruntime-openvino": partial(OnnxRuntimeRunner, provider="openvino"),
    "tensorrt": TensorRtRunner,
}
ENGINE_NAMES = tuple(_ENGINES)


def open_runner(path: str | os.PathLike[str], engine: str, **options: Any) -> Runner:
    """Load the model at `path` into `engine` and return the active runner.

    `options` go to the engine's runner, e.g. `num_threads=4`. Raises UsageError for an unknown engine
    or option, EngineError where the model cannot be loaded.
    """
    runner = make_runner(path, engine, **options)
    runner.activate()
    return runner


def precision_options(engine: str, precision: str) -> dict[str, Any]:
    """Return the option of `engine` for what is not int8: "auto", "fp32" or "bf16". Raises UsageError."""
    if engine == OpenVinoRunner.engine:
        return {"precision": precision}
    if precision != "auto":
        raise UsageError(
            "--engine-precision",
            got=f"{precision} for {engine}",
            expected="auto: other engines compute what the file says",
            remedy="Leave it out, export with --precision, or use --engine openvino",
        )
    return {}


def make_runner(path: str | os.PathLike[str], engine: str, **options: Any) -> Runner:
    """Return an inactive runner for `path`; `activate` loads the model. Raises UsageError."""
    if engine not in _ENGINES:
        raise UsageError(
            "engine",
            got=repr(engine),
            expected=f"one of {', '.join(ENGINE_NAMES)}",
            remedy="Choose one of these",
        )
    accepted = set(inspect.signature(_ENGINES[engine]).parameters) - {"path"}
    unknown = sorted(set(options) - accepted)
    if unknown:
        raise UsageError(
            f"engine {engine}",
            got=f"option {', '.join(unknown)}",
            expected=f"options among {', '.join(sorted(accepted))}",
            remedy="Leave the option out, or choose another engine",
        )
    return _ENGINES[engine](path, **options)
