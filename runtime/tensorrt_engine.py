"""A TensorRT engine in memory: checked against its manifest and this machine, with one execution context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accuquant._util.gpu import find_gpu
from accuquant.engine_manifest import EngineManifest
from accuquant.errors import EngineError
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.runner import ANY_EXTENT, ModelSpecs
from accuquant.runtime.runtime_cache import load_runtime_cache, save_runtime_cache
from accuquant.runtime.tensorrt_library import (
    check_gpu,
    check_version,
    deserialize,
    import_library,
    make_logger,
    refusal,
)

if TYPE_CHECKING:
    import tensorrt


@dataclass
class LoadedEngine:
    """What TensorRT needs to run one engine. A context refers to its engine, an engine to its runtime.

    `records_itself` says that the library replays the kernels as a CUDA graph on its own (tensorrt_rtx).
    """

    path: Path
    manifest: EngineManifest
    library: Any
    logger: Any
    runtime: tensorrt.Runtime
    engine: tensorrt.ICudaEngine
    context: tensorrt.IExecutionContext
    cache: Any
    records_itself: bool

    def specs(self) -> ModelSpecs:
        """Return the inputs and outputs in the engine's order."""
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        kind = self.library.TensorIOMode.INPUT
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == kind]
        return ModelSpecs(
            inputs=tuple(self._spec(name) for name in inputs),
            outputs=tuple(self._spec(name) for name in names if name not in inputs),
        )

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of a dynamic input. Raises EngineError outside of the profile."""
        if not self.context.set_input_shape(name, shape):
            smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
            raise EngineError(
                f"engine '{self.path.name}', input '{name}'",
                got=f"shape {list(shape)}",
                expected=f"from {list(smallest)} to {list(largest)}, its profile",
                remedy=f"Use such a shape, or build a wider profile: {self.manifest.rebuild}",
            )

    def enqueue(self, stream: int) -> None:
        """Put the kernels into a stream. Raises EngineError where TensorRT refuses."""
        if not self.context.execute_async_v3(stream):
            raise self.failed("a failed launch")

    def failed(self, what: str) -> EngineError:
        """Return the error for `what`, with the last thing that TensorRT said."""
        said = self.logger.errors[-1][:300] if self.logger.errors else "no reason"
        return EngineError(
            f"engine '{self.path.name}'",
            got=f"{what} ({said})",
            expected="an engine that runs",
            remedy=f"Build it again: {self.manifest.rebuild}",
        )

    def save_cache(self) -> None:
        """Keep the kernels that were finished on this machine for the next run."""
        if self.cache is not None:
            save_runtime_cache(self.cache, self.path, self.manifest)

    def _spec(self, name: str) -> TensorSpec:
        extents = (int(extent) for extent in tuple(self.engine.get_tensor_shape(name)))
        dtype = np.dtype(self.library.nptype(self.engine.get_tensor_dtype(name)))
        return TensorSpec(name, tuple(ANY_EXTENT if e == -1 else e for e in extents), str(dtype))


def load_engine(path: Path, *, cuda_graph: bool) -> LoadedEngine:
    """Load the engine file `path`; its activation memory has to be given before it runs.

    Raises EngineError where the file is not what its manifest describes, was compiled for another GPU or by
    another version, or where there is no GPU or driver; MissingDependencyError without the library.
    """
    manifest = EngineManifest.load(path)
    manifest.check_engine(path)
    check_gpu(manifest, find_gpu(), path)
    library = import_library(manifest.library)
    check_version(manifest, library.__version__, path)
    logger = make_logger(library)
    runtime, engine = deserialize(library, logger, path, manifest)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
    cache, records_itself = None, False
    if manifest.library == "tensorrt_rtx":
        cache = _use_runtime_cache(config, path, manifest)
        if cuda_graph:
            _record_in_library(config, library)
            records_itself = True
    context: tensorrt.IExecutionContext | None = engine.create_execution_context(config)
    if context is None:
        raise refusal(path, logger.errors, manifest)
    return LoadedEngine(path, manifest, library, logger, runtime, engine, context, cache, records_itself)


# What only TensorRT for RTX has; the types of tensorrt know nothing of it.


def _use_runtime_cache(config: Any, path: Path, manifest: EngineManifest) -> Any:
    cache = config.create_runtime_cache()
    load_runtime_cache(cache, path, manifest)
    config.set_runtime_cache(cache)
    return cache


def _record_in_library(config: Any, library: Any) -> None:
    config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
