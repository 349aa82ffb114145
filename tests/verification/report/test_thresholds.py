from __future__ import annotations

import math

import pytest

from accuquant.errors import UsageError
from accuquant.verification.report.thresholds import Check, Thresholds, Verdict, judge

MEASURED = {"psnr": 41.0, "ssim": 0.99, "cosine": 0.999, "lowering_psnr": 50.0, "fid": 0.4}


def test_defaults_check_fidelity_and_lowering() -> None:
    verdict = judge(MEASURED, Thresholds())
    assert [check.limit for check in verdict.checks] == [30.0, 35.0]
    assert verdict.passed


def test_one_failed_check_fails_the_verdict() -> None:
    verdict = judge(MEASURED, Thresholds(max_fid=0.3))
    assert [check.passed for check in verdict.checks] == [True, False, True]
    assert not verdict.passed


def test_a_value_at_its_limit_passes() -> None:
    assert judge(MEASURED, Thresholds(min_psnr=41.0, max_fid=0.4)).passed


def test_nan_never_passes() -> None:
    assert not Check("x", math.nan, "at least", 0.0).passed
    assert not Check("x", math.nan, "at most", 1.0).passed


def test_none_switches_a_check_off() -> None:
    assert judge(MEASURED, Thresholds(min_psnr=None, min_lowering_psnr=None)) == Verdict(())


def test_without_a_check_nothing_passes_and_nothing_fails() -> None:
    verdict = judge(MEASURED, Thresholds(min_psnr=None, min_lowering_psnr=None))
    assert verdict.passed is None
    assert verdict.word == "not judged"
    assert [judge(MEASURED, Thresholds(min_psnr=limit)).word for limit in (40, 42)] == ["passed", "failed"]


def test_levels_are_checked_where_they_were_measured() -> None:
    thresholds = Thresholds(min_psnr=None, min_lowering_psnr=None)
    levels = {"level_share": 0.002, "level_difference": 1.0}
    verdict = judge(MEASURED | levels, thresholds)
    assert [(check.value, check.passed) for check in verdict.checks] == [(0.002, False), (1.0, True)]


def test_a_limit_on_an_unmeasured_distance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"max_fid.*not measured"):
        Thresholds(max_fid=1.0).check_measurable(fid=False)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_senseless_limits_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="threshold min_psnr"):
        Thresholds(min_psnr=value)
