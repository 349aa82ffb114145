"""The GPU of this machine: whether there is one, which, and how new its driver is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accuquant.errors import EngineError, MissingDependencyError

_WITHOUT = "Use an engine that runs on the CPU: --engine openvino"


@dataclass(frozen=True)
class Gpu:
    """The current CUDA device. `driver` is the newest CUDA version that its driver supports."""

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]

    @property
    def target(self) -> str:
        """The compute capability as TensorRT's targets are called: "sm89"."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def find_gpu() -> Gpu:
    """Return the current CUDA device.

    Raises EngineError where there is no driver, a too old one, or no GPU, and MissingDependencyError
    without the package cuda-bindings.
    """
    cuda = cuda_runtime()
    driver = _driver_version(cuda)
    status, count = cuda.cudaGetDeviceCount()
    if driver == (0, 0):
        raise _no_gpu("no NVIDIA driver", "an NVIDIA GPU with its driver", f"Install the driver. {_WITHOUT}")
    if status == cuda.cudaError_t.cudaErrorInsufficientDriver:
        needed = _cuda_version(cuda.cudaRuntimeGetVersion()[1])
        raise _no_gpu(
            f"a driver for CUDA {driver[0]}.{driver[1]}, which is too old",
            f"a driver for CUDA {needed[0]}.0 or later",
            "Update the NVIDIA driver",
        )
    if status != cuda.cudaError_t.cudaSuccess or count == 0:
        raise _no_gpu(
            f"no CUDA device ({_text(cuda, status)})",
            "an NVIDIA GPU that this process may use",
            f"Check nvidia-smi and CUDA_VISIBLE_DEVICES. {_WITHOUT}",
        )
    device = check_cuda(cuda.cudaGetDevice())
    properties = check_cuda(cuda.cudaGetDeviceProperties(device))
    name = properties.name.decode().rstrip("\x00")
    return Gpu(name, (int(properties.major), int(properties.minor)), driver)


def cuda_runtime() -> Any:
    """Return the module cuda.bindings.runtime. Raises MissingDependencyError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as fault:
        raise MissingDependencyError(
            "CUDA",
            got=f"no usable cuda-bindings package ({fault})",
            expected="cuda-bindings 12.9 or newer",
            remedy="Run: pip install 'accuquant[gpu]' or 'accuquant[tensorrt-rtx]'",
        ) from fault
    return runtime


def check_cuda(result: tuple[Any, ...]) -> Any:
    """Return what a CUDA call gave beside its status. Raises EngineError unless it succeeded."""
    cuda = cuda_runtime()
    status, *values = result
    if status != cuda.cudaError_t.cudaSuccess:
        remedy = "Close other programs on the GPU, or take a smaller batch"
        if status != cuda.cudaError_t.cudaErrorMemoryAllocation:
            remedy = "Check the GPU with nvidia-smi, and start the process again"
        raise EngineError("CUDA", got=_text(cuda, status), expected="success", remedy=remedy)
    return values[0] if len(values) == 1 else tuple(values)


def _driver_version(cuda: Any) -> tuple[int, int]:
    status, number = cuda.cudaDriverGetVersion()
    return _cuda_version(number) if status == cuda.cudaError_t.cudaSuccess else (0, 0)


def _cuda_version(number: int) -> tuple[int, int]:
    return number // 1000, number % 1000 // 10


def _text(cuda: Any, status: Any) -> str:
    return f"{status.name}: {cuda.cudaGetErrorString(status)[1].decode()}"


def _no_gpu(got: str, expected: str, remedy: str) -> EngineError:
    return EngineError("GPU", got=got, expected=expected, remedy=remedy)
