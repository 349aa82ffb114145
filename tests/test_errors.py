"""The error tree: messages, exit codes, pickling."""

from __future__ import annotations

import pickle

import pytest

from accuquant import errors
from accuquant.errors import AccuQuantError, printable

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AccuQuantError)
]


def test_there_are_ten_kinds() -> None:
    assert len(KINDS) == 10


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b]0;owned\x07", "a\nb\rc", "\u202egnp.exe", "\ud800", "\u2028", "\x9b31m"]
)
def test_no_value_moves_a_cursor_breaks_a_line_or_turns_the_writing(
    kind: type[AccuQuantError], text: str
) -> None:
    error = kind(text, got=text, expected=text, remedy=text)
    for shown in (str(error), error.subject, error.got, error.expected, error.remedy):
        assert shown.isprintable()
    assert "\\x1b[2J" in printable("\x1b[2J")
    str(error).encode("utf-8")


def test_a_long_value_is_cut_in_the_middle() -> None:
    error = AccuQuantError("a", got="x" * 100_000 + "end", expected="c", remedy="d")
    assert len(str(error)) < 2100
    assert "more..." in error.got
    assert error.got.endswith("end")
    assert printable(error.got) == error.got


def test_letters_of_every_script_stay() -> None:
    assert printable("Übergröße 模型 модель") == "Übergröße 模型 модель"
