"""Choosing a device by name, and what its absence says; CUDA itself is for tests marked `gpu`."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from accuquant._util.progress import Silent
from accuquant.errors import CalibrationError, UsageError
from accuquant.networks.device import CPU, check_offload, choose_device, repeatable
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.room import free_memory

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu:0"])
def test_rejects_an_unknown_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"--device .*got an unknown name, expected auto, cpu, cuda, cuda:N"):
        choose_device(name)


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {name}: got no such device.*\(cpu\)\. Give"):
        choose_device(name)


@without_cuda
def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert choose_device() == torch.device("cpu")


@without_cuda
def test_tf32_is_refused_on_a_cpu() -> None:
    with pytest.raises(UsageError, match=r"--tf32: got the device cpu, expected an NVIDIA GPU"):
        choose_device("auto", tf32=True)


def test_a_driver_that_is_too_old_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver\non your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    with pytest.raises(UsageError, match=r"got CUDA initialization: The NVIDIA driver on your system"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_a_gpu_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(UsageError, match=r"got a device that fails: CUDA error: no kernel image"):
        choose_device("cuda")
    with pytest.raises(UsageError, match=r"--device cuda:1: got 1 GPUs, counted from 0"):
        choose_device("cuda:1")
    assert choose_device("auto") == torch.device("cpu")


def test_cuda_is_made_repeatable_and_left_as_it_was() -> None:
    before = torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    with repeatable(torch.device("cuda"), tf32=False):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    with repeatable(torch.device("cuda"), tf32=True):
        assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_names_the_stage_the_batch_and_what_to_change(fault: Exception) -> None:
    stages = StageWatch(Silent())
    stages.stage("weight scales and biases", 3)
    wanted = "stage 'weight scales and biases': got no memory left on cpu with batches of 8"
    with (
        pytest.raises(CalibrationError, match=re.escape(wanted) + ".* Give --batch-size 4"),
        memory_named(stages, torch.device("cpu"), 8),
    ):
        raise fault


def test_other_faults_pass_through() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory_named(StageWatch(Silent()), torch.device("cpu"), 8),
    ):
        raise RuntimeError("shapes do not match")


def test_offload_needs_a_device_with_memory_of_its_own() -> None:
    with pytest.raises(UsageError, match=r"--offload: got the device cpu.*Leave --offload out"):
        check_offload(CPU)
    check_offload(torch.device("cuda:1"))


def test_the_free_memory_of_a_cpu_is_what_the_system_says() -> None:
    free = free_memory(CPU)
    if Path("/proc/meminfo").is_file():
        assert free is not None
        assert 2**20 < free < 2**50
    assert free_memory(torch.device("mps")) is None
