"""The device that networks run on: chosen by name, tried out, and made to repeat itself bit for bit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch

from accuquant._util.device_name import check_device_name, no_tf32, unusable_device
from accuquant.errors import UsageError

CPU = torch.device("cpu")


def choose_device(name: str = "auto", *, tf32: bool = False) -> torch.device:
    """Return the device called "cpu", "cuda", "cuda:1" or "mps"; "auto" is a GPU that works, else the CPU.

    A device is tried out with a small product before it is returned. `tf32` says that the caller wants TF32
    products. Raises UsageError for an unknown name, a device that is not there or does not work, and for
    TF32 where there is none.
    """
    check_device_name(name)
    device = _first_that_works() if name == "auto" else torch.device(name)
    fault = _fault_of(device)
    if fault:
        raise unusable_device(name, fault, ", ".join(_there()))
    if tf32 and device.type != "cuda":
        raise no_tf32(str(device))
    return device


def check_offload(device: torch.device) -> None:
    """Raise UsageError where --offload has nothing to keep weights off."""
    if device.type == "cpu":
        raise UsageError(
            "--offload",
            got=f"the device {device}",
            expected="a device with memory of its own, whose layers fetch their weights from the CPU's",
            remedy="Leave --offload out: on the CPU weights are mapped from their files, and the system "
            "drops what it has no room for",
        )


@contextmanager
def repeatable(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Make what runs on `device` inside the block the same bit for bit each time, in full float32 or in TF32.

    On the CPU nothing has to be changed. CUDA chooses among algorithms by their times, adds in the order in
    which threads come, and rounds products to TF32 in convolutions, unless it is told otherwise.
    """
    if device.type != "cuda":
        yield
        return
    # read when cuBLAS makes its first handle (CUDA's documentation, "Results reproducibility")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic,
    )  # fmt: skip
    torch.use_deterministic_algorithms(True)
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[2:]


@contextmanager
def full_float32() -> Iterator[None]:
    """Let no float32 product of a GPU be rounded to TF32 inside the block, whatever was chosen outside."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def describe(device: torch.device) -> str:
    """Return a device's name for people: "cpu", or "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def device_of(network: torch.nn.Module) -> torch.device:
    """Return where the weights of `network` are."""
    return next(chain(network.parameters(), network.buffers())).device


def _first_that_works() -> torch.device:
    for name in ("cuda", "mps"):
        device = torch.device(name)
        if not _fault_of(device):
            return device
    return CPU


def _fault_of(device: torch.device) -> str:
    """Say why `device` cannot be used; "" where it can."""
    if device.type == "cpu":
        return ""
    with warnings.catch_warnings(record=True) as said:  # of a driver that is too old, torch only warns
        warnings.simplefilter("always")
        there = torch.cuda.is_available() if device.type == "cuda" else torch.backends.mps.is_available()
    if not there:
        reason = next((str(w.message) for w in said), "no such device, or a torch that was built without it")
        return " ".join(reason.split())[:200]
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"{torch.cuda.device_count()} GPUs, counted from 0"
    try:
        ones = torch.ones(2, 2, device=device)
        works = bool((ones @ ones == 2).all())
    except RuntimeError as fault:  # no kernel for this GPU, no memory left, a driver that gives up
        return f"a device that fails: {(str(fault).splitlines() or [''])[0][:200]}"
    return "" if works else "a device that computes 1 + 1 wrongly"


def _there() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fault has been told
        gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
