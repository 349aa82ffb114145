"""What is said where a device has no memory left: in which stage, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from accuquant._util.progress import Progress
from accuquant._util.system_errors import is_out_of_memory
from accuquant.errors import AccuQuantError, CalibrationError


class StageWatch:
    """A Progress that hands everything on to another, and remembers which stage was the last to begin."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.name = "loading"

    def stage(self, name: str, total: int) -> None:
        """Begin a stage."""
        self.name = name
        self._shown.stage(name, total)

    def advance(self, units: int = 1) -> None:
        """Hand the units on."""
        self._shown.advance(units)

    def message(self, text: str) -> None:
        """Hand the line on."""
        self._shown.message(text)


@contextmanager
def memory_named(
    stages: StageWatch,
    device: torch.device,
    batch_size: int,
    *,
    error: type[AccuQuantError] = CalibrationError,
    kept: str = "what is finished is kept",
) -> Iterator[None]:
    """Raise `error`, with the stage and what to change, where memory on `device` runs out inside.

    `kept` says what the work so far is good for.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not is_out_of_memory(fault):
            raise
        smaller = f"--batch-size {max(1, batch_size // 2)}" if batch_size > 1 else "a smaller --image-size"
        options = [smaller]
        options += ["--checkpoint-blocks"] if error is CalibrationError else []
        options += ["--offload"] if device.type != "cpu" else []
        raise error(
            f"stage '{stages.name}'",
            got=f"no memory left on {_described(device)} with batches of {batch_size}",
            expected="room for the network and for what one batch leaves behind in it",
            remedy=f"Give {', '.join(options)}, or another --device; {kept}",
        ) from fault


def _described(device: torch.device) -> str:
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)} ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"
