"""Tests of the targets' names."""

from __future__ import annotations

import pytest

from accuquant.engines.target import TARGETS, Target, parse_target, parse_targets
from accuquant.errors import UsageError


def test_a_name_is_a_compute_capability() -> None:
    assert parse_target("sm89") == Target(8, 9)
    assert parse_target("sm121") == Target(12, 1)
    assert [target.name for target in TARGETS] == ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def test_a_list_keeps_its_order_and_drops_repetitions() -> None:
    assert parse_targets("sm89, sm86,sm89") == (Target(8, 9), Target(8, 6))


@pytest.mark.parametrize("name", ["sm88", "SM89", "", "89"])
def test_an_unknown_target_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match="sm75 or sm80 or sm86 or sm89 or sm120 or sm121"):
        parse_target(name)


def test_one_wrong_name_refuses_the_whole_list() -> None:
    with pytest.raises(UsageError, match="target 'sm99'"):
        parse_targets("sm89,sm99")
