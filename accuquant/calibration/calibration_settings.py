"""The settings of a calibration, checked before any work begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from accuquant.errors import UsageError
from accuquant.scales.observer import observer_named

from .gradient import gradient_arm
from .rounding import check_rounding


@dataclass(frozen=True)
class CalibrationSettings:
    """How a network is calibrated; the defaults suit W8A8.

    `steps` and `group_size` count sampler steps; `float_budget` is a share of all multiply-accumulates,
    0 to 1. `shared_iterations` learn what all step groups share (weight scales and biases) from the ends of
    whole trajectories, `iterations` a group's activation scales from the group's end; `learning_rate` is
    Adam's step on the logarithms of the latter, `shared_learning_rate` its step for the former in units of
    the error that there is at first.
    `rounding` is "gptq" (rounding errors compensate each other, and the bias their mean) or "nearest".
    `refine` moves each scale to where its layer's output errs least, on real inputs.
    `sensitivity` measures what each layer alone does to a step, for the report; a `float_budget` needs it
    anyway. It takes four calls of the network a layer.
    `affine` lets one-sided activations (after SiLU) use a zero_point; False gives symmetric ranges only.
    """

    steps: int = 50
    group_size: int = 5
    num_trajectories: int = 64
    iterations: int = 32
    shared_iterations: int = 16
    batch_size: int = 8
    weight_bits: int = 8
    activation_bits: int = 8
    gradient: str = "accuquant"
    observer: str = "norm"
    refine: bool = True
    rounding: str = "gptq"
    affine: bool = True
    float_budget: float = 0.0
    sensitivity: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    shared_learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    got=str(value),
                    expected=f"a value from {low} to {high}",
                    remedy="Give a value in that range",
                )
        gradient_arm(self.gradient)
        observer_named(self.observer)
        check_rounding(self.rounding)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, 10_000),
    ("group_size", 1, 10_000),
    ("num_trajectories", 1, 1_000_000),
    ("iterations", 0, 1_000_000),
    ("shared_iterations", 0, 1_000_000),
    ("batch_size", 1, 4096),
    ("weight_bits", 2, 8),
    ("activation_bits", 2, 8),
    ("float_budget", 0.0, 1.0),
    ("learning_rate", 1e-8, 1.0),
    ("shared_learning_rate", 1e-8, 1.0),
    ("seed", 0, 2**31 - 1),
)
