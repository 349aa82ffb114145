"""Step groups: which timestep belongs where."""

from __future__ import annotations

import random

import pytest

from accuquant.errors import UsageError
from accuquant.groups import StepGroups


def spaced(steps: int, train: int = 1000) -> list[int]:
    """DDIM's "leading" spacing."""
    return [k * (train // steps) for k in reversed(range(steps))]


def test_edges_lie_halfway_between_the_neighbours() -> None:
    groups = StepGroups.from_timesteps([900, 600, 300, 0], group_size=2, num_train_timesteps=1000)
    assert groups.edges == (1000.0, 450.0, 0.0)
    assert groups.interior_edges == (450.0,)
    assert len(groups) == 2


def test_an_edge_belongs_to_the_noisier_group() -> None:
    groups = StepGroups((1000, 450, 0))
    assert [groups.find(t) for t in (999, 450, 449.9, 449, 0)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("timestep", [1000.001, 1000.5, -1, -0.001, float("nan"), float("inf")])
def test_rejects_a_timestep_outside_the_calibrated_range(timestep: float) -> None:
    with pytest.raises(UsageError, match=r"timestep .*expected a timestep in \[0, 1000\]"):
        StepGroups((1000, 450, 0)).find(timestep)


def test_the_first_group_has_the_end_of_the_training_schedule() -> None:
    """Image-to-image with flow matching is calibrated below it; strength 1 and text-to-image start there."""
    groups = StepGroups.from_timesteps([850.0, 600.0, 300.0], group_size=2, num_train_timesteps=1000)
    assert groups.edges[0] == 1000.0
    assert groups.find(1000.0) == 0


@pytest.mark.parametrize(
    "edges", [(), (5,), (0, 1), (3, 3), (3, 2, 2), (float("nan"), 0), (float("inf"), 0), (5, float("-inf"))]
)
def test_rejects_edges_that_do_not_fall(edges: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"two finite edges that fall strictly"):
        StepGroups(edges)


@pytest.mark.parametrize("size", [0, -3])
def test_rejects_a_group_size_below_one(size: int) -> None:
    with pytest.raises(UsageError, match=r"group size: got -?\d"):
        StepGroups.from_timesteps([2, 1], group_size=size, num_train_timesteps=10)


@pytest.mark.parametrize("timesteps", [[], [0, 1], [5, 3, 4]])
def test_rejects_timesteps_that_do_not_fall(timesteps: list[int]) -> None:
    with pytest.raises(UsageError, match=r"a falling sequence"):
        StepGroups.from_timesteps(timesteps, group_size=1, num_train_timesteps=10)


def test_a_last_group_may_be_shorter() -> None:
    groups = StepGroups.from_timesteps(spaced(10), group_size=4, num_train_timesteps=1000)
    assert groups.steps_of(spaced(10)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_repeated_timesteps_stay_in_one_group() -> None:
    heun = [900, 600, 600, 300, 300, 0]
    threes = StepGroups.from_timesteps(heun, group_size=3, num_train_timesteps=1000)
    assert threes.steps_of(heun) == [[0, 1, 2], [3, 4, 5]]
    late = [900, 900, 900, 600, 0]
    twos = StepGroups.from_timesteps(late, group_size=2, num_train_timesteps=1000)
    assert twos.steps_of(late) == [[0, 1, 2, 3], [4]]


def test_any_schedule_is_split_into_runs_of_the_group_size() -> None:
    rng = random.Random(0)
    for _ in range(300):
        train = rng.choice([10, 100, 1000])
        steps = sorted(rng.sample(range(train), rng.randint(1, min(train, 60))), reverse=True)
        size = rng.randint(1, 12)
        groups = StepGroups.from_timesteps(steps, group_size=size, num_train_timesteps=train)
        expected = [list(range(start, min(start + size, len(steps)))) for start in range(0, len(steps), size)]
        assert groups.steps_of(steps) == expected


def test_every_training_timestep_has_exactly_one_group_and_groups_rise_as_time_falls() -> None:
    rng = random.Random(1)
    for _ in range(60):
        count = rng.randint(1, 50)
        groups = StepGroups.from_timesteps(
            spaced(count), group_size=rng.randint(1, 9), num_train_timesteps=1000
        )
        found = [groups.find(t) for t in reversed(range(1000))]
        assert found == sorted(found)
        assert set(found) == set(range(len(groups)))
        for t, group in zip(reversed(range(1000)), found, strict=True):
            assert groups.edges[group + 1] <= t < groups.edges[group]


def test_another_number_of_steps_finds_the_nearest_calibrated_group() -> None:
    calibrated = spaced(50)
    groups = StepGroups.from_timesteps(calibrated, group_size=5, num_train_timesteps=1000)
    for steps in (1, 7, 20, 100, 1000):
        for t in spaced(steps):
            nearest = min(calibrated, key=lambda c: (abs(c - t), -c))
            assert groups.find(t) == groups.find(nearest)


def test_timesteps_above_the_training_schedule_have_a_group() -> None:
    groups = StepGroups.from_timesteps([1000.0, 500.0], group_size=1, num_train_timesteps=1000)
    assert groups.find(1000.0) == 0
    assert groups.edges[0] == 1001.0


def test_negative_timesteps_have_a_group() -> None:
    assert StepGroups.from_timesteps([3, -2], group_size=1, num_train_timesteps=4).edges == (4.0, 0.5, -2.0)
