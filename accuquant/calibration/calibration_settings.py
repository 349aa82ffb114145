"""The settings of a calibration, checked before any work begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from accuquant.e4m3 import FORMATS, Format
from accuquant.errors import UsageError, unknown_name
from accuquant.scales.observer import observer_named

from .equalize import check_equalizer
from .gradient import gradient_arm
from .methods.method import Method
from .methods.registry import METHODS, method_named
from .presets import preset_values
from .rounding import check_rounding


@dataclass(frozen=True)
class CalibrationSettings:
    """How a network is calibrated; the defaults suit W8A8.

    `steps` and `group_size` count the steps that the pipeline is sampled with. Trajectories are recorded,
    learned from and judged at `calibration_steps` (None: as many as `steps`; at most 8 where nothing is
    learned); the step groups are ranges of timesteps, which hold those of `steps` too. `float_budget` is a
    share of all multiply-accumulates, 0 to 1.
    `shared_iterations` learn what all step groups share (weight scales and biases) from the ends of
    whole trajectories, `iterations` a group's activation scales from the group's end. None: 16 and 32 where
    rounding is coarse, 0 with 7-bit weights and 8-bit activations or finer. `learning_rate` is
    Adam's step on the logarithms of the latter, `shared_learning_rate` its step for the former in units of
    the error that there is at first.
    With `probe`, a group learns only where two batches agree that there is something to gain.
    `rounding` is "gptq" (rounding errors compensate each other, and the bias their mean), "nearest", or
    "adaround": learned block by block, from GPTQ's levels on.
    `refine` moves each scale to where its layer's output errs least, on real inputs.
    `sensitivity` measures what each layer alone does to a step, for the report; a `float_budget` needs it
    anyway. It takes four calls of the network a layer.
    `format` is what weights and activations are rounded to: "int8", or "fp8" (E4M3), which has neither other
    bits than 8 nor zero-points.
    `affine` lets one-sided activations (after SiLU) use a zero_point; False gives symmetric ranges only.
    `equalize` folds factors or rotations into the network first (`equalize.EQUALIZERS`).
    `method` is how all of it is done (docs/methods.md); a rival of "accuquant" takes only those of the other
    settings that it has in common with it: `methods.method.OWN_SETTINGS` names the rest. Make settings of one
    with `preset`, which knows its defaults.
    """

    steps: int = 50
    calibration_steps: int | None = None
    group_size: int = 5
    num_trajectories: int = 64
    iterations: int | None = None
    shared_iterations: int | None = None
    batch_size: int = 8
    weight_bits: int = 8
    activation_bits: int = 8
    format: Format = "int8"
    probe: bool = True
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
    preset_name: str = "balanced"
    method: str = "accuquant"
    equalize: str | None = None

    @classmethod
    def preset(cls, name: str, **given: Any) -> CalibrationSettings:
        """Return the settings of the preset `name`, with the fields that are `given` instead of its own.

        What the `method` sets by default comes between the two. Raises UsageError where no preset has that
        name, and where an option was given that the method has no use for.
        """
        method = method_named(given.get("method", cls.method))
        for option in given:
            if option in method.refused:
                raise _clash(method, option, "given")
        values = {**preset_values(name), **method.defaults, "preset_name": name}
        if given.get("format") == "fp8":
            values["affine"] = False
        if "calibration_steps" in values:
            values["calibration_steps"] = min(values["calibration_steps"], given.get("steps", cls.steps))
        return cls(**{**values, **given})

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    got=str(value),
                    expected=f"a value from {low} to {high}",
                    remedy="Give a value in that range",
                )
        self._check_calibration_steps()
        self._check_format()
        preset_values(self.preset_name)
        gradient_arm(self.gradient)
        observer_named(self.observer)
        check_rounding(self.rounding)
        check_equalizer(self.equalize)
        self._check_method()

    def _check_method(self) -> None:
        method = method_named(self.method)
        if method.find is not None and self.preset_name != "balanced":
            raise UsageError(
                f"--preset {self.preset_name}",
                got=f"a preset of AccuQuant's own way, with --method {method.name}",
                expected="--preset balanced",
                remedy="Leave it out, or leave out --method",
            )
        for name in method.refused:
            if (value := getattr(self, name)) != type(self).__dataclass_fields__[name].default:
                raise _clash(method, name, str(value))
        for option, (low, high) in (("weight", method.weight_bits), ("activation", method.activation_bits)):
            bits = getattr(self, f"{option}_bits")
            if not low <= bits <= high:
                raise UsageError(
                    f"--{option}-bits",
                    got=f"{bits}, which --method {method.name} does not define",
                    expected=str(low) if low == high else f"a value from {low} to {high}",
                    remedy="Give such a value, or take another method",
                )

    def _check_format(self) -> None:
        if self.format not in FORMATS:
            raise unknown_name("format", self.format, FORMATS)
        if self.format == "int8":
            return
        taking = [other.name for other in METHODS.values() if self.format in other.formats]
        if self.method not in taking:
            raise UsageError(
                f"--format {self.format}",
                got=f"--method {self.method}, which is defined for integers",
                expected=f"--method {', '.join(taking)}",
                remedy="Leave one of the two out",
            )
        if self.rounding == "adaround":
            raise UsageError(
                f"--format {self.format}",
                got="--rounding adaround, which learns between two integers",
                expected="--rounding gptq or nearest",
                remedy="Leave one of the two out",
            )
        for name, there in (("weight_bits", 8), ("activation_bits", 8), ("affine", False)):
            if (value := getattr(self, name)) != there:
                option = "--affine" if name == "affine" else f"--{name.replace('_', '-')} {value}"
                raise UsageError(
                    option,
                    got=f"--format {self.format}, which has "
                    + ("no zero-points" if name == "affine" else "8 bits and no other width"),
                    expected="--symmetric" if name == "affine" else f"--{name.replace('_', '-')} 8",
                    remedy="Leave it out, or take --format int8",
                )

    def _check_calibration_steps(self) -> None:
        if self.calibration_steps is not None and self.calibration_steps > self.steps:
            raise UsageError(
                "--calibration-steps",
                got=f"{self.calibration_steps}, more than the {self.steps} of --steps",
                expected=f"from 1 to the {self.steps} steps that are sampled with",
                remedy="Give fewer, or leave it out",
            )

    @property
    def simulated_steps(self) -> int:
        """The steps of the trajectories that are recorded, learned from and judged by."""
        if self.calibration_steps is not None:
            return self.calibration_steps
        if method_named(self.method).every_step:
            return self.steps
        learns = self.trajectory_iterations > 0 or self.group_iterations > 0
        return self.steps if learns else min(self.steps, _FEW_STEPS)

    @property
    def simulated_group_size(self) -> int:
        """How many simulated steps make a group: they span about what `group_size` sampled steps span."""
        if method_named(self.method).one_set:
            return self.simulated_steps
        return max(1, round(self.group_size * self.simulated_steps / self.steps))

    @property
    def _coarse(self) -> bool:
        """Whether rounding leaves errors that learning finds (docs/calibration.md, "Whether to learn")."""
        return self.weight_bits < _FINE_WEIGHT_BITS or self.activation_bits < _FINE_ACTIVATION_BITS

    @property
    def trajectory_iterations(self) -> int:
        """How many iterations learn what all groups share."""
        if method_named(self.method).find is not None:
            return 0
        if self.shared_iterations is None:
            return _SHARED_ITERATIONS if self._coarse else 0
        return self.shared_iterations

    @property
    def group_iterations(self) -> int:
        """How many iterations learn the scales of one step group, or a block with a method that has them."""
        method = method_named(self.method)
        if method.find is not None:
            return method.iterations if self.iterations is None else self.iterations
        if self.iterations is None:
            return _ITERATIONS if self._coarse else 0
        return self.iterations

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, with numbers where None left the choice to the rest.

        Those that the method refuses are not among them, nor is the method where it is AccuQuant's.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        values |= {
            "calibration_steps": self.simulated_steps,
            "iterations": self.group_iterations,
            "shared_iterations": self.trajectory_iterations,
        }
        # recipes of AccuQuant's own way stay what they were before there were others
        absent = {*method_named(self.method).refused}
        absent |= {"method"} if self.method == "accuquant" else set()
        absent |= {"equalize"} if self.equalize is None else set()
        absent |= {"format"} if self.format == "int8" else set()
        return {name: value for name, value in values.items() if name not in absent}


def _clash(method: Method, name: str, got: str) -> UsageError:
    taken = ", ".join(f"--{option.replace('_', '-')}" for option in method.options)
    return UsageError(
        f"--{name.replace('_', '-')}",
        got=f"{got}, with --method {method.name}, which has no use for it",
        expected=f"of AccuQuant's own options only {taken}" if taken else "none of AccuQuant's own options",
        remedy="Leave it out, or take another method (docs/methods.md)",
    )


#: Steps that are simulated at most where scales are only measured: at equal cost, more trajectories of fewer
#: steps end better. What is learned needs every step (docs/calibration.md, "Fewer steps").
_FEW_STEPS = 8
#: Bits from which on learning is left out unless it is asked for, and how much is learned below them.
_FINE_WEIGHT_BITS, _FINE_ACTIVATION_BITS = 7, 8
_ITERATIONS, _SHARED_ITERATIONS = 32, 16

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, 10_000),
    ("calibration_steps", 1, 10_000),
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
