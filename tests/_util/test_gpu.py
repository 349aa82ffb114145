"""Tests of what is said about the GPU, with a stand-in for CUDA's package where there is no GPU."""

from __future__ import annotations

import enum
import sys
from types import SimpleNamespace

import pytest

from accuquant._util.gpu import Gpu, check_cuda, cuda_runtime, find_gpu
from accuquant.errors import EngineError, MissingDependencyError

#: A part of cudaError_t.
Status = enum.Enum(
    "Status",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorInvalidDevice": 101,
    },
)


class Cuda:
    """The calls of cuda.bindings.runtime, made for CUDA 13, with the `driver` and devices of a machine."""

    cudaError_t = Status  # noqa: N815

    def __init__(self, driver: int, devices: tuple[Status, int | None]) -> None:
        self.driver, self.devices = driver, devices

    def cudaDriverGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 13000

    def cudaGetDeviceCount(self) -> tuple[Status, int | None]:  # noqa: N802
        return self.devices

    def cudaGetDevice(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, object]:  # noqa: N802
        return Status.cudaSuccess, SimpleNamespace(name=b"NVIDIA L4\0\0", major=8, minor=9)

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:  # noqa: N802
        return Status.cudaSuccess, {2: b"out of memory", 100: b"no device"}.get(status.value, b"words")


def be_on(monkeypatch: pytest.MonkeyPatch, driver: int, status: Status, count: int | None) -> None:
    monkeypatch.setattr("accuquant._util.gpu.cuda_runtime", lambda: Cuda(driver, (status, count)))


@pytest.mark.trt
@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_driver_is_told_so() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*--engine openvino"):
        find_gpu()


@pytest.mark.parametrize(
    ("driver", "status", "count", "said"),
    [
        (0, Status.cudaErrorInsufficientDriver, None, r"no NVIDIA driver.*--engine openvino"),
        (12040, Status.cudaErrorInsufficientDriver, None, r"CUDA 12\.4, which is too old, .* for CUDA 13\.0"),
        (13000, Status.cudaErrorNoDevice, 0, r"no CUDA device \(cudaErrorNoDevice: no device\).*nvidia-smi"),
        (13000, Status.cudaSuccess, 0, r"no CUDA device \(cudaSuccess: words\).*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, driver: int, status: Status, count: int | None, said: str
) -> None:
    be_on(monkeypatch, driver, status, count)
    with pytest.raises(EngineError, match=said):
        find_gpu()


def test_the_gpu_is_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, 12080, Status.cudaSuccess, 2)
    assert find_gpu() == Gpu("NVIDIA L4", (8, 9), (12, 8))
    assert find_gpu().target == "sm89"


@pytest.mark.gpu
def test_the_gpu_has_a_name_and_a_target() -> None:
    gpu = find_gpu()
    assert gpu.name
    assert gpu.target == f"sm{gpu.capability[0]}{gpu.capability[1]}"
    assert gpu.driver >= (12, 0)


def test_a_failed_call_is_an_error_with_cudas_words(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, 13000, Status.cudaSuccess, 1)
    with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation: out of memory.*smaller batch"):
        check_cuda((Status.cudaErrorMemoryAllocation,))
    with pytest.raises(EngineError, match=r"cudaErrorInvalidDevice.*nvidia-smi"):
        check_cuda((Status.cudaErrorInvalidDevice, None))


def test_a_call_that_succeeded_gives_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, 13000, Status.cudaSuccess, 1)
    assert check_cuda((Status.cudaSuccess, 3)) == 3
    assert check_cuda((Status.cudaSuccess, 3, 4)) == (3, 4)
    assert check_cuda((Status.cudaSuccess,)) == ()


@pytest.mark.trt
def test_cudas_package_has_every_name_that_is_asked_for() -> None:
    runtime = cuda_runtime()
    for name in vars(Cuda):
        assert name.startswith("_") or hasattr(runtime, name), name
    for status in Status:
        assert getattr(runtime.cudaError_t, status.name).value == status.value
    with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation: out of memory"):
        check_cuda((runtime.cudaError_t.cudaErrorMemoryAllocation,))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="cuda-bindings"):
        cuda_runtime()
