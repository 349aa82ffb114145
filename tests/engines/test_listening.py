"""Tests of the progress that the compiler reports."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

from accuquant.engines._listening import PhaseTree, make_logger, make_monitor


class Base:
    """What a class of TensorRT's is to its subclass."""

    ERROR, INTERNAL_ERROR, WARNING, VERBOSE = range(4)


TRT = SimpleNamespace(ILogger=Base, IProgressMonitor=Base)


def test_the_logger_writes_everything_and_keeps_the_first_error_and_the_warnings() -> None:
    file = StringIO()
    logger = make_logger(TRT, file)
    logger.log(Base.VERBOSE, "parsing")
    logger.log(Base.WARNING, "timing cache")
    assert (logger.first_error, logger.warnings) == (None, ["timing cache"])
    logger.log(Base.INTERNAL_ERROR, "first\n  " + "x" * 400)
    logger.log(Base.ERROR, "second")
    assert logger.first_error == ("first " + "x" * 400)[:300]
    assert logger.warnings == ["timing cache"]
    assert file.getvalue().splitlines() == ["parsing", "timing cache", "first", "  " + "x" * 400, "second"]


def test_the_monitor_reports_each_new_percent_once_and_lets_the_build_go_on() -> None:
    reports: list[dict[str, Any]] = []
    monitor = make_monitor(TRT, reports.append)
    monitor.phase_start("build", None, 200)
    assert all(monitor.step_complete("build", step) for step in range(5)), "False would cancel it"
    assert reports == [{"percent": 1}, {"percent": 2}]
    monitor.phase_start("time", "build", 1)
    monitor.phase_finish("time")
    assert reports[2:] == [{"percent": 3}]
    monitor.phase_finish("build")
    monitor.phase_finish("build")
    assert reports[3:] == [{"percent": 100}]


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
