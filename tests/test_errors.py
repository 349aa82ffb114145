"""The error tree: messages, exit codes, pickling."""

from __future__ import annotations

import pickle

import pytest

from accuquant import errors
from accuquant.errors import AccuQuantError

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AccuQuantError)
]


def test_there_are_nine_kinds() -> None:
    assert len(KINDS) == 9


def test_the_message_is_one_sentence_with_got_expected_and_remedy() -> None:
    error = AccuQuantError("layer 'a'", got="3", expected="4", remedy="Calibrate again")
    assert str(error) == "layer 'a': got 3, expected 4. Calibrate again."


def test_a_remedy_that_ends_with_a_full_stop_keeps_one() -> None:
    assert str(AccuQuantError("a", got="b", expected="c", remedy="Do d.")) == "a: got b, expected c. Do d."


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_pickling(kind: type[AccuQuantError]) -> None:
    error = kind("a", got="b", expected="c", remedy="d")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.subject, copy.got, copy.expected, copy.remedy) == (str(error), "a", "b", "c", "d")


@pytest.mark.parametrize("kind", KINDS)
def test_only_usage_errors_exit_with_2(kind: type[AccuQuantError]) -> None:
    assert kind.exit_code == (2 if kind is errors.UsageError else 1)
