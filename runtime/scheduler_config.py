"""The part of a diffusers scheduler_config.json that DDIM and DDPM sampling depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from accuquant._util.facts import FactsError, as_facts, read_facts
from accuquant._util.named_file import named_file
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
#: More training timesteps than any sampler has: what follows from them is computed for each.
_MOST_TIMESTEPS = 100_000
#: Choices of variance_type that diffusers has and the numpy loop has not.
_DIFFUSERS_ALONE = ("fixed_large_log", "learned", "learned_range")
_Beta = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class SchedulerConfig:
    """A sampler's configuration under diffusers' names and with diffusers' defaults.

    `scheduler` is the diffusers class. Raises UsageError for a class or a choice that the numpy loop
    does not implement.
    """

    scheduler: str
    num_train_timesteps: Annotated[int, Meta(ge=1, le=_MOST_TIMESTEPS)] = 1000
    beta_start: _Beta = 0.0001
    beta_end: _Beta = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[_Beta, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: Annotated[int, Meta(ge=0, le=_MOST_TIMESTEPS)] = 0
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Meta(gt=0, le=1e30)] = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.995
    sample_max_value: Annotated[float, Meta(ge=1, le=1e30)] = 1.0
    set_alpha_to_one: bool = True
    variance_type: str = "fixed_small"

    def __post_init__(self) -> None:
        _check_choice("scheduler", self.scheduler, SUPPORTED_SCHEDULERS)
        if self.trained_betas is None:
            ddim = self.scheduler == "DDIMScheduler"
            known = _DDIM_BETA_SCHEDULES if ddim else _CHOICES["beta_schedule"]
            _check_choice("beta_schedule", self.beta_schedule, known)
        elif len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"{len(self.trained_betas)} trained_betas for {self.num_train_timesteps} timesteps"
            )
        for name in ("prediction_type", "timestep_spacing", "variance_type"):
            _check_choice(name, getattr(self, name), _CHOICES[name])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], scheduler: str | None = None) -> SchedulerConfig:
        """Read a diffusers configuration; `scheduler` overrides its class, as a pipeline may do.

        Raises FactsError for a value of another type or out of its range.
        """
        return as_facts({**data, "scheduler": scheduler or str(data.get("_class_name"))}, cls)

    @classmethod
    def from_folder(cls, folder: Path, scheduler: str | None = None) -> SchedulerConfig:
        """Read scheduler/scheduler_config.json of a pipeline folder.

        Raises UsageError for a class that the numpy loop does not know, EngineError for a damaged file.
        """
        subject = f"folder '{folder}'"
        path = named_file(folder, "scheduler/scheduler_config.json", subject=subject)
        try:
            data = read_facts(path, dict[str, Any])
            _check_choice("scheduler", scheduler or str(data.get("_class_name")), SUPPORTED_SCHEDULERS)
        except (OSError, FactsError) as fault:
            raise _damaged(path, str(fault)) from fault
        try:
            return cls.from_dict(data, scheduler)
        except UsageError as fault:
            if data.get("variance_type") in _DIFFUSERS_ALONE:
                raise
            # a class that is known, and a choice that it does not have
            raise _damaged(path, f"{fault.subject.rpartition(', ')[2]} {fault.got}") from fault
        except FactsError as fault:
            raise _damaged(path, str(fault)) from fault


def _damaged(path: Path, got: str) -> EngineError:
    return EngineError(
        f"scheduler configuration '{path}'",
        got=got,
        expected="the JSON that diffusers writes",
        remedy="Copy the whole exported folder, or run `accuquant export` again",
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"scheduler configuration, {name}",
            got=repr(value),
            expected=f"one of {', '.join(choices)}, which the numpy loop implements",
            remedy="Sample with diffusers: pipe.unet = EngineUNet.from_pretrained(folder)",
        )
