from __future__ import annotations

import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from accuquant.errors import VerificationError
from accuquant.verification.measure.scheduler_check import (
    check_scheduler,
    scheduler_config,
    scheduler_differences,
)

DDIM = scheduler_config(DDIMScheduler())


def test_the_same_scheduler_passes() -> None:
    assert check_scheduler(DDIM, scheduler_config(DDIMScheduler()), allow_other=False) == ()


def test_another_class_is_refused() -> None:
    with pytest.raises(VerificationError, match="class_name: DDIMScheduler -> DDPMScheduler"):
        check_scheduler(DDIM, scheduler_config(DDPMScheduler()), allow_other=False)


def test_another_prediction_type_is_refused() -> None:
    other = scheduler_config(DDIMScheduler(prediction_type="v_prediction"))
    with pytest.raises(VerificationError, match="prediction_type: epsilon -> v_prediction"):
        check_scheduler(DDIM, other, allow_other=False)


def test_another_scheduler_is_noted_where_it_is_allowed() -> None:
    other = scheduler_config(DDIMScheduler(beta_end=0.03))
    (note,) = check_scheduler(DDIM, other, allow_other=True)
    assert "beta_end: 0.02 -> 0.03" in note


def test_what_describes_the_file_is_not_compared() -> None:
    calibrated = {
        **DDIM,
        "_diffusers_version": "0.30.0",
        "_use_default_values": ["eta"],
        "_name_or_path": "a",
    }
    actual = {**DDIM, "_diffusers_version": "0.42.0", "_name_or_path": "b", "option_of_a_later_version": 1}
    assert scheduler_differences(calibrated, actual) == []


def test_lists_and_tuples_are_alike() -> None:
    assert scheduler_differences({"trained_betas": [0.1, 0.2]}, {"trained_betas": (0.1, 0.2)}) == []
