"""Where the seconds go, on a clock that moves when it is told."""

from __future__ import annotations

import pytest

from accuquant.runtime.loop_profile import PARTS, LoopProfile, counted


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def profile(clock: Clock) -> LoopProfile:
    return LoopProfile(clock, first="loading")


def run_two_steps(clock: Clock, profile: LoopProfile) -> None:
    """Load 7, prepare 1; twice: drop-in 3 around network 20, guidance 2, scheduler 4, then 6; decode 50."""
    with profile.inside("loading", then="rest"):
        clock.pass_by(7)
    clock.pass_by(1)
    for _ in range(2):
        with profile.calling("drop-in"):
            clock.pass_by(1)
            with profile.inside("network"):
                clock.pass_by(20)
            clock.pass_by(2)
        clock.pass_by(2)
        with profile.stepping():
            clock.pass_by(4)
        clock.pass_by(6)
    with profile.inside("decoder"):
        clock.pass_by(50)


def test_every_second_belongs_to_one_part(clock: Clock, profile: LoopProfile) -> None:
    run_two_steps(clock, profile)
    assert profile.seconds == {
        "loading": 7, "network": 40, "drop-in": 6, "scheduler": 8, "guidance": 2 + 6 + 2, "decoder": 50,
        "rest": 1 + 6,
    }  # fmt: skip
    assert list(profile.seconds) == [part for part in PARTS if part in profile.seconds]
    assert sum(profile.seconds.values()) == clock.time - 100


def test_the_overhead_is_what_steps_take_on_top_of_the_network(clock: Clock, profile: LoopProfile) -> None:
    run_two_steps(clock, profile)
    assert profile.overhead == (6 + 8 + 10) / 40
    assert profile.total == 121
    assert profile.calls == {"drop-in": 2, "network": 2, "scheduler": 2, "decoder": 1}


def test_without_a_network_call_there_is_no_overhead(clock: Clock, profile: LoopProfile) -> None:
    clock.pass_by(1)
    assert profile.overhead is None
    assert profile.to_dict()["overhead"] is None


def test_what_stands_between_two_calls_of_a_pipeline_is_the_rest(clock: Clock, profile: LoopProfile) -> None:
    run_two_steps(clock, profile)
    clock.pass_by(500)
    with profile.inside("text encoder"):
        clock.pass_by(3)
    run_two_steps(clock, profile)
    assert profile.seconds["guidance"] == 2 * 10
    assert profile.seconds["rest"] == 2 * 7 + 500


def test_without_a_decoder_the_next_call_settles_what_was_open(clock: Clock, profile: LoopProfile) -> None:
    with profile.stepping():
        clock.pass_by(4)
    clock.pass_by(500)
    profile.settle()
    with profile.calling("network"):
        clock.pass_by(20)
    assert profile.seconds == {"network": 20, "scheduler": 4, "rest": 500}


def test_an_ended_profile_stays_as_it_is(clock: Clock, profile: LoopProfile) -> None:
    run_two_steps(clock, profile)
    profile.end()
    clock.pass_by(1000)
    assert profile.to_dict() == {
        "format_version": 1,
        "seconds": profile.seconds,
        "total_seconds": 121,
        "calls": {"drop-in": 2, "network": 2, "scheduler": 2, "decoder": 1},
        "ran_by": {},
        "overhead": 0.6,
    }


def test_a_part_that_fails_ends_too(clock: Clock, profile: LoopProfile) -> None:
    def fail() -> None:
        with counted(profile, "decoder", then="rest"):
            clock.pass_by(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    clock.pass_by(3)
    assert profile.seconds == {"decoder": 2, "rest": 3}


def test_a_row_says_what_ran_the_part_and_its_share(clock: Clock, profile: LoopProfile) -> None:
    run_two_steps(clock, profile)
    profile.ran_by["decoder"] = "openvino"
    rows = {row[0]: row[1:4] for row in profile.rows()}
    assert rows["decoder (openvino)"] == ("50.000", "41.3%", "1")
    assert rows["loading"] == ("7.000", "", "")


def test_without_a_profile_nothing_is_counted() -> None:
    with counted(None, "network"):
        pass
