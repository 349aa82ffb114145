"""The decision between lowerings, from given figures."""

from __future__ import annotations

import dataclasses

import pytest

from accuquant.export.for_target.candidates import Candidate
from accuquant.export.for_target.decide import (
    MAX_GROUP_BYTES,
    EngineFigures,
    decide,
    decide_by_rule,
    saving,
)

RESCALE = EngineFigures("rescale", 1, 50_000_000, kernels=300, traffic=200e6)


def figures(lowering: str, kernels: int, megabytes: float, **changes: object) -> EngineFigures:
    one = EngineFigures(lowering, 1, 50_000_000, kernels=kernels, traffic=megabytes * 1e6)  # type: ignore[arg-type]
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def test_kernels_and_traffic_count_alike() -> None:
    assert saving(figures("hybrid", 270, 200), RESCALE) == pytest.approx(0.05)
    assert saving(figures("hybrid", 300, 180), RESCALE) == pytest.approx(0.05)
    assert saving(figures("hybrid", 270, 220), RESCALE) == pytest.approx(0)


def test_times_count_alone_where_they_were_measured() -> None:
    slow = dataclasses.replace(RESCALE, milliseconds=10.0)
    assert saving(figures("hybrid", 1000, 1000, milliseconds=9.0), slow) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kernels", "noise_db", "taken"),
    [(270, 0.9, True), (270, 1.1, False), (240, 1.1, True), (286, 0.1, False), (280, 0.1, True)],
)
def test_hybrid_has_to_save_something_for_each_decibel(kernels: int, noise_db: float, taken: bool) -> None:
    hybrid = figures("hybrid", kernels, 200, noise_db=noise_db)
    decision = decide([RESCALE, hybrid])
    assert decision.lowering == ("hybrid" if taken else "rescale")
    assert f"{noise_db:.1f} dB more int8 noise" in decision.reason
    assert ("saves too little" in decision.reason) is not taken


@pytest.mark.parametrize(("engines", "taken"), [(5, True), (6, False)])
def test_an_engine_a_group_has_to_fit_into_memory(engines: int, taken: bool) -> None:
    assert 5 * 50_000_000 < MAX_GROUP_BYTES < 6 * 50_000_000
    decision = decide([RESCALE, figures("per-group", 250, 180, engines=engines)])
    assert decision.lowering == ("per-group" if taken else "rescale")
    assert f"{engines} engines of 50 MB" in decision.reason


def test_of_two_that_pay_the_exact_one_is_taken() -> None:
    hybrid = figures("hybrid", 240, 160, noise_db=0.5)
    exact = figures("per-group", 244, 162, engines=2)
    decision = decide([RESCALE, hybrid, exact])
    assert decision.lowering == "per-group"
    assert "hybrid saves no more that matters (20.0 % less)" in decision.reason
    far_faster = dataclasses.replace(hybrid, kernels=200)
    assert decide([RESCALE, far_faster, exact]).lowering == "hybrid"


def test_what_was_not_compiled_is_named_with_its_size() -> None:
    decision = decide([RESCALE], {"per-group": "10 engines of about 50 MB"})
    assert decision.lowering == "rescale"
    assert decision.reason.endswith("; per-group would be 10 engines of about 50 MB")


def test_the_measured_times_are_in_the_reason() -> None:
    base = dataclasses.replace(RESCALE, milliseconds=10.0)
    decision = decide([base, figures("hybrid", 0, 0, milliseconds=8.0, noise_db=0.5)])
    assert decision.reason == "8.00 ms, 20.0 % less than rescale (10.00 ms); 0.5 dB more int8 noise"


@pytest.mark.parametrize(("noise_db", "taken"), [(0.9, "hybrid"), (1.2, "rescale"), (None, "rescale")])
def test_without_figures_a_rule_decides_and_says_what_is_missing(noise_db: float | None, taken: str) -> None:
    candidates = [Candidate("rescale", 1, 0.0), Candidate("per-group", 10, 0.0)]
    if noise_db is not None:
        candidates.insert(1, Candidate("hybrid", 1, noise_db))
    decision = decide_by_rule(candidates, "no audit: there is no compiler")
    assert decision.lowering == taken
    assert decision.reason.endswith("(no audit: there is no compiler)")
