"""The diffusers schedulers that AccuQuant simulates, and what each of them remembers between steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from accuquant.errors import CalibrationError, SourceError


@dataclass(frozen=True)
class SchedulerFacts:
    """What the simulation has to know about a scheduler class.

    `written_in_place`: attributes whose tensors a step changes, which are copied.
    """

    written_in_place: tuple[str, ...] = ()


#: What a network can predict, for one scheduler or another of diffusers.
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
#: A scheduler is added here once tests/denoising/test_schedulers.py shows that it follows diffusers' loop.
SCHEDULERS: dict[str, SchedulerFacts] = {
    "DDIMScheduler": SchedulerFacts(),
    "DDPMScheduler": SchedulerFacts(),
    "PNDMScheduler": SchedulerFacts(written_in_place=("cur_model_output",)),
    "EulerDiscreteScheduler": SchedulerFacts(),
    "EulerAncestralDiscreteScheduler": SchedulerFacts(),
    "HeunDiscreteScheduler": SchedulerFacts(),
    "DPMSolverMultistepScheduler": SchedulerFacts(),
    "UniPCMultistepScheduler": SchedulerFacts(),
    "LCMScheduler": SchedulerFacts(),
    "FlowMatchEulerDiscreteScheduler": SchedulerFacts(),
}
#: A sampler of AccuQuant's own, of feed-forward generators and decoders (one_step.py).
_ONE_STEP = {"OneStepScheduler": SchedulerFacts()}


def scheduler_facts(scheduler: Any) -> SchedulerFacts:
    """Return what is known about the class of `scheduler`; raise CalibrationError that lists the known."""
    name, known = type(scheduler).__name__, {**SCHEDULERS, **_ONE_STEP}
    if name not in known:
        raise CalibrationError(
            f"scheduler {name}",
            got="a scheduler that AccuQuant does not simulate yet",
            expected=" or ".join(SCHEDULERS),
            remedy="Take one of these: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config), "
            "then save the pipeline. To add yours, see docs/pipelines.md",
        )
    check_prediction(scheduler)
    return known[name]


def check_prediction(scheduler: Any) -> None:
    """Raise SourceError for a prediction_type that no scheduler has: diffusers looks at it in the loop."""
    kind = scheduler.config.get("prediction_type", PREDICTIONS[0])
    if kind not in PREDICTIONS:
        raise SourceError(
            f"scheduler {type(scheduler).__name__}",
            got=f"prediction_type {kind!r}",
            expected=f"one of {', '.join(PREDICTIONS)}",
            remedy="Correct scheduler_config.json, or copy or download the pipeline again",
        )


def with_steps(scheduler: Any, num_steps: int) -> Any:
    """Return a copy of `scheduler` that is set to `num_steps` inference steps."""
    prepared = copy.deepcopy(scheduler)
    maximum = int(prepared.config.num_train_timesteps)
    if not 1 <= num_steps <= maximum:
        raise CalibrationError(
            "number of steps",
            got=str(num_steps),
            expected=f"1 to {maximum}, the steps that the model was trained with",
            remedy="Give --steps in that range",
        )
    try:
        prepared.set_timesteps(num_steps)
    except ValueError as fault:  # e.g. LCM distilled for 50 steps takes no more
        raise CalibrationError(
            f"scheduler {type(scheduler).__name__}, {num_steps} steps",
            got=str(fault).splitlines()[0],
            expected="a number of steps that it can be set to",
            remedy="Give other --steps",
        ) from fault
    return prepared


def check_signal(scheduler: Any, timesteps: Iterable[float]) -> None:
    """Raise CalibrationError where a step would divide by zero: no signal is left, and noise is predicted.

    x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t). A schedule that was rescaled to zero terminal SNR has
    abar_T = 0 and needs another prediction: Lin et al., arXiv 2305.08891, section 3.2.
    """
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is None or scheduler.config.get("prediction_type", "epsilon") != "epsilon":
        return
    whole = [int(t) for t in timesteps if float(t).is_integer() and 0 <= t < len(abar)]
    empty = [t for t in whole if float(abar[t]) == 0]
    if empty:
        raise CalibrationError(
            f"scheduler {type(scheduler).__name__}, timestep {empty[0]}",
            got="no signal left (zero terminal SNR) and a network that predicts the noise (epsilon): a "
            "division by zero",
            expected="rescale_betas_zero_snr off, or a network that predicts v or the sample",
            remedy="pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, "
            "rescale_betas_zero_snr=False), then save the pipeline; or timestep_spacing='leading'",
        )


def takes_generator(scheduler: Any) -> bool:
    """Say whether a step draws its noise from the generators that it is given."""
    return "generator" in inspect.signature(scheduler.step).parameters


class SchedulerMemory:
    """Saves and restores what a scheduler's steps change: its index and, of multistep ones, the history.

    What a step does not touch (noise schedule, timesteps) is kept once, in the scheduler itself.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._in_place = scheduler_facts(scheduler).written_in_place
        self._fresh = {key: _copied(value) for key, value in vars(scheduler).items()}

    def reset(self) -> None:
        """Forget every step: the next one starts a trajectory."""
        self.restore({})

    def save(self) -> dict[str, Any]:
        """Return the attributes that steps have changed."""
        return {
            key: self._own(key, value)
            for key, value in vars(self._scheduler).items()
            if key not in self._fresh or not _same(value, self._fresh[key])
        }

    def restore(self, changed: Mapping[str, Any]) -> None:
        """Go back to what `save` returned."""
        attributes = vars(self._scheduler)
        for key in attributes.keys() - self._fresh.keys():
            del attributes[key]
        attributes.update({key: _copied(value) for key, value in self._fresh.items()})
        attributes.update({key: self._own(key, value) for key, value in changed.items()})

    def _own(self, key: str, value: Any) -> Any:
        if key in self._in_place and isinstance(value, Tensor):
            return value.clone()
        return _copied(value)


def history_tensors(saved: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every floating-point tensor of a saved scheduler with a name that says where it stands."""
    for key in sorted(saved):
        items = saved[key] if isinstance(saved[key], list) else [saved[key]]
        for index, value in enumerate(items):
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{key}.{index}", value


def with_tensors(saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return `saved` with tensors replaced by their names, as `history_tensors` gives them."""
    replaced: dict[str, Any] = {}
    for key, value in saved.items():
        if isinstance(value, list):
            replaced[key] = [tensors.get(f"{key}.{index}", item) for index, item in enumerate(value)]
        else:
            replaced[key] = tensors.get(f"{key}.0", value)
    return replaced


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _same(value: Any, fresh: Any) -> bool:
    if isinstance(value, list) and isinstance(fresh, list):
        return len(value) == len(fresh) and all(map(_same, value, fresh))
    if value is fresh:
        return True
    plain = (bool, int, float, str)
    return isinstance(value, plain) and isinstance(fresh, plain) and bool(value == fresh)
