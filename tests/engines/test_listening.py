"""Tests of the progress that the compiler reports."""

from __future__ import annotations

from accuquant.engines._listening import PhaseTree


def test_a_phase_inside_a_step_counts_for_that_step() -> None:
    phases = PhaseTree()
    phases.start("build", None, 4)
    assert phases.share == 0
    phases.complete("build", 1)
    assert phases.share == 0.25
    phases.start("time", "build", 2)
    phases.complete("time", 1)
    assert phases.share == 0.25 + 0.25 / 2
    phases.finish("time")
    assert phases.share == 0.5
    phases.complete("build", 2)
    assert phases.share == 0.5
    phases.finish("build")
    assert phases.share == 1


def test_the_share_never_falls_when_a_phase_starts_again() -> None:
    phases = PhaseTree()
    phases.start("build", None, 2)
    phases.start("time", "build", 2)
    phases.complete("time", 1)
    phases.start("time", "build", 2)
    assert phases.share == 0.25


def test_steps_of_an_unknown_phase_are_ignored() -> None:
    phases = PhaseTree()
    phases.complete("never started", 3)
    assert phases.share == 0
