"""Names of devices, and what every command says of one that cannot be had; needs no torch."""

from __future__ import annotations

import re

from accuquant.errors import UsageError

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device_name(name: str) -> None:
    """Raise UsageError for a name that no device has."""
    if not _NAMES.fullmatch(name):
        raise UsageError(
            f"--device {name}",
            got="an unknown name",
            expected="auto, cpu, cuda, cuda:N or mps",
            remedy="Give one of these",
        )


def unusable_device(name: str, fault: str, usable: str) -> UsageError:
    """Return the error for a device that does not work: why, and which do."""
    return UsageError(
        f"--device {name}",
        got=fault,
        expected=f"a device that works ({usable})",
        remedy="Give --device cpu, or another of these",
    )


def no_tf32(device: str) -> UsageError:
    """Return the error for TF32 on a device that has none."""
    return UsageError(
        "--tf32",
        got=f"the device {device}",
        expected="an NVIDIA GPU, which alone has TF32",
        remedy="Leave --tf32 out",
    )
