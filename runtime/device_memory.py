"""What a GPU engine runs on: a stream, buffers that stay, and the memory that several engines share."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from accuquant._util.gpu import check_cuda, cuda_runtime

#: CUDA takes no empty allocation, and its own are aligned to this.
_SMALLEST = 256


class DeviceArray(NamedTuple):
    """An array on the GPU that somebody else owns: contiguous, at `pointer`."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str


class DeviceBuffer:
    """Memory on the GPU that grows and is kept until `close`."""

    def __init__(self) -> None:
        self.pointer = 0
        self.nbytes = 0

    def reserve(self, nbytes: int) -> None:
        """Have at least `nbytes`; what was in the buffer is lost where it grows."""
        wanted = max(nbytes, _SMALLEST)
        if self.nbytes >= wanted:
            return
        self.close()
        self.pointer = int(check_cuda(cuda_runtime().cudaMalloc(wanted)))
        self.nbytes = wanted

    def close(self) -> None:
        """Give the memory back."""
        if self.nbytes:
            pointer, self.pointer, self.nbytes = self.pointer, 0, 0
            check_cuda(cuda_runtime().cudaFree(pointer))


class CudaStream:
    """A stream of our own, which waits for other streams only where it is told to."""

    def __init__(self) -> None:
        self._cuda = cuda_runtime()
        self.handle: Any = check_cuda(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        self._event = check_cuda(self._cuda.cudaEventCreateWithFlags(self._cuda.cudaEventDisableTiming))

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy `nbytes` between two addresses, each on the host or on the GPU, in the stream's order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        check_cuda(self._cuda.cudaMemcpyAsync(to, source, nbytes, kind, self.handle))

    def synchronize(self) -> None:
        """Wait on the host until everything in the stream is done."""
        check_cuda(self._cuda.cudaStreamSynchronize(self.handle))

    def wait_for(self, other: int) -> None:
        """Let what comes next here start after what is in the stream `other` now; the host goes on."""
        self._order(before=other, after=self.handle)

    def hold_back(self, other: int) -> None:
        """Let what comes next in the stream `other` start after what is here now; the host goes on."""
        self._order(before=self.handle, after=other)

    def _order(self, *, before: Any, after: Any) -> None:
        check_cuda(self._cuda.cudaEventRecord(self._event, before))
        check_cuda(self._cuda.cudaStreamWaitEvent(after, self._event, 0))

    def close(self) -> None:
        """Destroy the stream."""
        check_cuda(self._cuda.cudaEventDestroy(self._event))
        check_cuda(self._cuda.cudaStreamDestroy(self.handle))


class CudaGraph:
    """Work that was recorded from a stream once and is launched as a whole."""

    def __init__(self, stream: CudaStream, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts into `stream`. Raises EngineError where it cannot be recorded."""
        self._cuda = cuda_runtime()
        self._stream = stream
        # Thread-local: what other threads do meanwhile, torch's allocator say, does not spoil it.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check_cuda(self._cuda.cudaStreamBeginCapture(stream.handle, mode))
        try:
            enqueue()
        finally:
            # A capture that is not ended would leave the stream unusable.
            ended = self._cuda.cudaStreamEndCapture(stream.handle)
        graph = check_cuda(ended)
        self._executable = check_cuda(self._cuda.cudaGraphInstantiate(graph, 0))
        check_cuda(self._cuda.cudaGraphDestroy(graph))

    def launch(self) -> None:
        """Run the recorded work in the stream."""
        check_cuda(self._cuda.cudaGraphLaunch(self._executable, self._stream.handle))

    def close(self) -> None:
        """Destroy the graph."""
        check_cuda(self._cuda.cudaGraphExecDestroy(self._executable))


class Workspace:
    """The stream and the activation memory that the engines of one model share.

    They run one after the other, so that the memory is as large as the largest needs. It is open while
    somebody has entered it.
    """

    def __init__(self) -> None:
        self.activations = DeviceBuffer()
        self._stream: CudaStream | None = None
        self._users = 0

    @property
    def stream(self) -> CudaStream:
        """The stream of an open workspace."""
        assert self._stream is not None, "entered"
        return self._stream

    def __enter__(self) -> Workspace:
        if self._users == 0:
            self._stream = CudaStream()
        self._users += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0:
            stream, self._stream = self.stream, None
            stream.synchronize()
            self.activations.close()
            stream.close()
