"""The part of a diffusers scheduler_config.json that DDIM and DDPM sampling depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accuquant.errors import EngineError, UsageError

SUPPORTED_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")
_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
#: What DDIM of diffusers knows; its DDPM adds "laplace" and "sigmoid".
_DDIM_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
#: Annotation -> what JSON may hold there.
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True)
class SchedulerConfig:
    """A sampler's configuration under diffusers' names and with diffusers' defaults.

    `scheduler` is the diffusers class. Raises UsageError for a class or a choice that the numpy loop
    does not implement, TypeError for a value of another type.
    """

    scheduler: str
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    set_alpha_to_one: bool = True
    variance_type: str = "fixed_small"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), _KINDS.get(str(field.type))
            if kind is not None and not isinstance(value, kind):
                raise TypeError(f"{field.name} is {value!r}, expected {field.type}")
        _check_choice("scheduler", self.scheduler, SUPPORTED_SCHEDULERS)
        if self.trained_betas is None:
            ddim = self.scheduler == "DDIMScheduler"
            known = _DDIM_BETA_SCHEDULES if ddim else _CHOICES["beta_schedule"]
            _check_choice("beta_schedule", self.beta_schedule, known)
        else:
            object.__setattr__(self, "trained_betas", tuple(map(float, self.trained_betas)))
        for name in ("prediction_type", "timestep_spacing", "variance_type"):
            _check_choice(name, getattr(self, name), _CHOICES[name])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], scheduler: str | None = None) -> SchedulerConfig:
        """Read a diffusers configuration; `scheduler` overrides its class, as a pipeline may do."""
        names = {field.name for field in fields(cls)}
        known = {key: value for key, value in data.items() if key in names}
        return cls(**{**known, "scheduler": scheduler or str(data.get("_class_name"))})

    @classmethod
    def from_folder(cls, folder: Path, scheduler: str | None = None) -> SchedulerConfig:
        """Read scheduler/scheduler_config.json of a pipeline folder. Raises EngineError, UsageError."""
        path = Path(folder) / "scheduler" / "scheduler_config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(data, scheduler)
        except (OSError, TypeError, ValueError, AttributeError) as fault:
            raise EngineError(
                f"scheduler configuration '{path}'",
                got=f"{type(fault).__name__}: {fault}",
                expected="the JSON that diffusers writes",
                remedy="Copy the whole exported folder, or run `accuquant export` again",
            ) from fault


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"scheduler configuration, {name}",
            got=repr(value),
            expected=f"one of {', '.join(choices)}, which the numpy loop implements",
            remedy="Sample with diffusers: pipe.unet = EngineUNet.from_pretrained(folder)",
        )
