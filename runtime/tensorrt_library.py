"""Load a TensorRT engine: which library, whether it fits this machine, and what its errors mean."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accuquant._util.gpu import Gpu
from accuquant.engine_manifest import EngineManifest
from accuquant.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import tensorrt

_EXTRAS = {"tensorrt": "gpu", "tensorrt_rtx": "tensorrt-rtx"}
_AMPERE = (8, 0)


def import_library(name: str) -> Any:
    """Return the module tensorrt or tensorrt_rtx. Raises MissingDependencyError, EngineError."""
    if name not in _EXTRAS:
        raise EngineError(
            "engine manifest",
            got=f"library '{name}'",
            expected=" or ".join(_EXTRAS),
            remedy="Run `accuquant build` again",
        )
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingDependencyError(
            f"engine of {name}",
            got=f"no usable {name} package ({fault})",
            expected="the library that compiled the engine",
            remedy=f"Run: pip install 'accuquant[{_EXTRAS[name]}]'",
        ) from fault


def check_version(manifest: EngineManifest, installed: str, engine: Path) -> None:
    """Raise EngineError where the engine was compiled by another version than is installed."""
    if installed != manifest.version and not manifest.options.get("version_compatible"):
        raise EngineError(
            f"engine '{engine}'",
            got=f"an engine of {manifest.library} {manifest.version}",
            expected=f"one of version {installed}, which is installed",
            remedy=f"Build it again: {manifest.rebuild}",
        )


def check_gpu(manifest: EngineManifest, gpu: Gpu, engine: Path) -> None:
    """Raise EngineError where the engine was compiled for another kind of GPU than `gpu`."""
    if manifest.target == gpu.target:
        return
    level = manifest.options.get("hardware_compatibility", "none")
    if level == "ampere+" and gpu.capability >= _AMPERE:
        return
    raise EngineError(
        f"engine '{engine}'",
        got=f"an engine for {manifest.target}",
        expected=f"one for {gpu.target} ({gpu.name})",
        remedy=f"Build one: {re.sub(r'--target sm[0-9]+', f'--target {gpu.target}', manifest.rebuild)}",
    )


def make_logger(trt: Any) -> Any:
    """Return a trt.ILogger that keeps the errors in `errors` and says nothing."""

    class Keeper(trt.ILogger):  # type: ignore[misc]  # the library's name is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Keeper()


def deserialize(
    trt: Any, logger: Any, engine: Path, manifest: EngineManifest
) -> tuple[tensorrt.Runtime, tensorrt.ICudaEngine]:
    """Return (runtime, engine) of the file `engine`. Raises EngineError with what TensorRT said."""
    runtime: tensorrt.Runtime | None = trt.Runtime(logger)
    if runtime is None:
        raise refusal(engine, logger.errors, manifest)
    loaded: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise refusal(engine, logger.errors, manifest)
    return runtime, loaded


def refusal(engine: Path, messages: list[str], manifest: EngineManifest) -> EngineError:
    """Return the error for an engine that cannot be loaded, from TensorRT's own messages."""
    said = " ".join(messages)
    expected, remedy = "an engine that this machine can load", f"Build it again: {manifest.rebuild}"
    if "driver version is insufficient" in said or "cudaError 35" in said:
        expected, remedy = "an NVIDIA driver as new as the library", "Install or update the NVIDIA driver"
    elif "no CUDA-capable device" in said or "cudaError 100" in said:
        expected, remedy = "an NVIDIA GPU", "Use an engine that runs on the CPU: --engine openvino"
    elif "out of memory" in said or "cudaError 2:" in said:
        expected, remedy = "enough GPU memory", "Close other programs on the GPU, or build a smaller batch"
    reason = messages[0][:300] if messages else "no reason"
    return EngineError(
        f"engine '{engine}'",
        got=f"a refusal of {manifest.library} ({reason})",
        expected=expected,
        remedy=remedy,
    )
