"""Tests of what is said about the GPU. Those that need one are marked; the rest need CUDA's package only."""

from __future__ import annotations

import pytest

from accuquant._util.gpu import check_cuda, cuda_runtime, find_gpu
from accuquant.errors import EngineError, MissingDependencyError

runtime = pytest.importorskip("cuda.bindings.runtime")


def has_driver() -> bool:
    return bool(runtime.cudaDriverGetVersion()[1])


@pytest.mark.skipif(has_driver(), reason="there is a driver")
def test_a_machine_without_a_driver_is_told_so() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*--engine openvino"):
        find_gpu()


@pytest.mark.gpu
def test_the_gpu_has_a_name_and_a_target() -> None:
    gpu = find_gpu()
    assert gpu.name
    assert gpu.target == f"sm{gpu.capability[0]}{gpu.capability[1]}"
    assert gpu.driver >= (12, 0)


def test_a_failed_call_is_an_error_with_cudas_words() -> None:
    with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation: out of memory.*smaller batch"):
        check_cuda((runtime.cudaError_t.cudaErrorMemoryAllocation,))
    with pytest.raises(EngineError, match="cudaErrorInvalidDevice"):
        check_cuda((runtime.cudaError_t.cudaErrorInvalidDevice, None))


def test_a_call_that_succeeded_gives_its_values() -> None:
    success = runtime.cudaError_t.cudaSuccess
    assert check_cuda((success, 3)) == 3
    assert check_cuda((success, 3, 4)) == (3, 4)
    assert check_cuda((success,)) == ()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="cuda-bindings"):
        cuda_runtime()


class OldDriver:
    """The calls of cuda.bindings.runtime, as a driver for CUDA 12.4 answers a library for CUDA 13."""

    cudaError_t = runtime.cudaError_t  # noqa: N815

    def cudaDriverGetVersion(self) -> tuple[object, int]:  # noqa: N802
        return self.cudaError_t.cudaSuccess, 12040

    def cudaRuntimeGetVersion(self) -> tuple[object, int]:  # noqa: N802
        return self.cudaError_t.cudaSuccess, 13000

    def cudaGetDeviceCount(self) -> tuple[object, None]:  # noqa: N802
        return self.cudaError_t.cudaErrorInsufficientDriver, None


def test_a_driver_that_is_too_old_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accuquant._util.gpu.cuda_runtime", OldDriver)
    with pytest.raises(EngineError, match=r"CUDA 12.4, which is too old, expected a driver for CUDA 13.0"):
        find_gpu()
