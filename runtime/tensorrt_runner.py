"""Run a TensorRT engine on the GPU, from host arrays or from arrays that are there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np

from accuquant.errors import EngineError
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.device_memory import CudaGraph, DeviceArray, DeviceBuffer, Workspace
from accuquant.runtime.runner import ANY_EXTENT, Array, ModelSpecs, Runner
from accuquant.runtime.tensorrt_engine import LoadedEngine, load_engine

Shape = tuple[int, ...]
#: Makes an output: (name, shape, dtype) -> where it goes.
Allocate = Callable[[str, Shape, str], DeviceArray]


class TensorRtRunner(Runner):
    """An engine that `accuquant build` compiled, on the current CUDA device.

    The engine must match its manifest, the installed library and the GPU. Inputs and outputs have buffers
    on the GPU that stay between calls, so that the kernels of one shape are recorded once and launched as
    a whole (`cuda_graph`). Engines that run one after the other may share a `workspace`: its stream and its
    activation memory.
    """

    engine = "tensorrt"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        cuda_graph: bool = True,
        workspace: Workspace | None = None,
    ) -> None:
        super().__init__(path, name=name)
        self.cuda_graph = cuda_graph
        self._workspace = workspace or Workspace()
        self._active: LoadedEngine | None = None
        self._tensors: tuple[TensorSpec, ...] = ()
        self._buffers: dict[str, DeviceBuffer] = {}
        self._shapes: dict[str, Shape] = {}
        self._graph: CudaGraph | None = None
        self._ran: tuple[object, ...] | None = None

    def activate_impl(self) -> ModelSpecs:
        """Check the engine against its manifest and this machine, load it, and reserve its memory."""
        loaded = load_engine(self.path, cuda_graph=self.cuda_graph)
        self._workspace.__enter__()
        self._active = loaded
        try:
            self._workspace.activations.reserve(loaded.engine.device_memory_size_v2)
            specs = loaded.specs()
        except BaseException:
            self.deactivate_impl()
            raise
        self._tensors = (*specs.inputs, *specs.outputs)
        self._buffers = {spec.name: DeviceBuffer() for spec in self._tensors}
        return specs

    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the inputs to the GPU, run, and copy the outputs back."""
        stream = self._workspace.stream
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        shapes = self._prepare({name: array.shape for name, array in arrays.items()})
        for name, array in arrays.items():
            stream.copy(self._buffers[name].pointer, array.ctypes.data, array.nbytes)
        self._launch()
        outputs = {}
        for spec in self.output_specs:
            output = np.empty(shapes[spec.name], spec.dtype)
            stream.copy(output.ctypes.data, self._buffers[spec.name].pointer, output.nbytes)
            outputs[spec.name] = output
        stream.synchronize()
        return outputs

    def infer_on_device(
        self, feeds: Mapping[str, DeviceArray], allocate: Allocate, caller_stream: int
    ) -> None:
        """Run on arrays that are on the GPU, and write the outputs where `allocate` says.

        No value passes the host and the host does not wait: the work is ordered after what is in
        `caller_stream` now, and what comes next there is ordered after it. Raises EngineError as `infer`.
        """
        check_device_feeds(self.name, self.input_specs, feeds)
        stream = self._workspace.stream
        shapes = self._prepare({name: array.shape for name, array in feeds.items()})
        outputs = {s.name: allocate(s.name, shapes[s.name], s.dtype) for s in self.output_specs}
        stream.wait_for(caller_stream)
        for name, array in feeds.items():
            stream.copy(self._buffers[name].pointer, array.pointer, _nbytes(array.shape, array.dtype))
        self._launch()
        for name, array in outputs.items():
            stream.copy(array.pointer, self._buffers[name].pointer, _nbytes(array.shape, array.dtype))
        stream.hold_back(caller_stream)

    def deactivate_impl(self) -> None:
        """Free the engine, its buffers, and its share of the workspace."""
        if self._active is None:
            return
        self._workspace.stream.synchronize()
        self._forget_graph()
        for buffer in self._buffers.values():
            buffer.close()
        loaded, self._active = self._active, None
        self._buffers, self._shapes, self._tensors, self._ran = {}, {}, (), None
        try:
            loaded.save_cache()
        finally:
            del loaded
            self._workspace.__exit__(None, None, None)

    @property
    def _loaded(self) -> LoadedEngine:
        assert self._active is not None, "the base class checks that it is active"
        return self._active

    def _prepare(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the input shapes, have buffers for them, and return the shape of every tensor."""
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            # Buffers may move: nothing that is still queued may use them.
            self._workspace.stream.synchronize()
            self._forget_graph()
            self._shapes = self._set_shapes(shapes)
            for spec in self._tensors:
                buffer = self._buffers[spec.name]
                buffer.reserve(_nbytes(self._shapes[spec.name], spec.dtype))
                self._loaded.context.set_tensor_address(spec.name, buffer.pointer)
        return self._shapes

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        loaded = self._loaded
        self._shapes = {}
        for spec in self.input_specs:
            if ANY_EXTENT in spec.shape:
                loaded.set_shape(spec.name, tuple(shapes[spec.name]))
        unknown = loaded.context.infer_shapes()
        if unknown:
            raise loaded.failed(f"no shape for {', '.join(unknown)}")
        return {
            spec.name: tuple(int(extent) for extent in tuple(loaded.context.get_tensor_shape(spec.name)))
            for spec in self._tensors
        }

    def _launch(self) -> None:
        """Run the kernels: recorded where that is possible, from the second call of a shape on."""
        loaded, memory = self._loaded, self._workspace.activations
        used: tuple[object, ...] = (
            memory.pointer,
            *self._shapes.values(),
            *(buffer.pointer for buffer in self._buffers.values()),
        )
        if used != self._ran:
            self._forget_graph()
            loaded.context.set_device_memory(memory.pointer, memory.nbytes)
            # TensorRT defers work to the first run of a shape, which must not be recorded.
            self._enqueue()
            self._ran = used
        elif self.cuda_graph and not loaded.records_itself:
            if self._graph is None:
                self._graph = CudaGraph(self._workspace.stream, self._enqueue)
            self._graph.launch()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        self._loaded.enqueue(int(self._workspace.stream.handle))

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._workspace.stream.synchronize()
            self._graph.close()
            self._graph = None


def check_device_feeds(name: str, specs: tuple[TensorSpec, ...], feeds: Mapping[str, DeviceArray]) -> None:
    """Raise EngineError unless `feeds` has each input once, with its dtype and its fixed extents."""
    if set(feeds) != {spec.name for spec in specs}:
        raise EngineError(
            name,
            got=f"inputs {sorted(feeds)}",
            expected=f"{[spec.name for spec in specs]}",
            remedy="Pass each input of the exported network once, by its name",
        )
    for spec in specs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            wanted in (ANY_EXTENT, extent) for extent, wanted in zip(array.shape, spec.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            raise EngineError(
                f"{name}, input '{spec.name}'",
                got=f"{array.dtype} {list(array.shape)}",
                expected=f"{spec.dtype} [{', '.join(map(str, spec.shape))}]",
                remedy="Convert it, or build the engine for this shape (accuquant build --batch-size)",
            )


def _nbytes(shape: Shape, dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
