"""One way to run a denoising network, ready to be timed, or the reason why it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from accuquant.errors import AccuQuantError

Precision = Literal["int8", "fp8", "fp16", "bf16", "fp32"]
#: The precisions of a quantized network.
QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Contender:
    """An engine with a network in it. `call` runs the network once and returns when it is done."""

    engine: str
    precision: Precision
    device: Device
    call: Callable[[], object]
    #: What the engine chose by itself, asked after a call.
    chosen: Callable[[], tuple[str, ...]] = tuple

    @property
    def name(self) -> str:
        """What tables call it: "openvino int8"."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class LeftOut:
    """A contender that is not timed, and why."""

    name: str
    reason: str


def attempt(name: str, make: Callable[[], Contender]) -> Contender | LeftOut:
    """Return what `make` makes after one call of it, or why it cannot be run here."""
    try:
        contender = make()
        contender.call()
    except AccuQuantError as fault:
        return LeftOut(name, f"{fault.got}. {fault.remedy}")
    except ModuleNotFoundError as fault:
        return LeftOut(name, f"{fault.name} is not installed")
    except RuntimeError as fault:  # how torch says that memory ran out, or that it cannot compile
        return LeftOut(name, " ".join(f"{type(fault).__name__}: {fault}".split())[:200])
    return contender
