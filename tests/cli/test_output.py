"""Tables: long cells fold, paths stay in one piece."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from accuquant.cli._output import print_table

PATH = "out/engines/sm89/tensorrt_rtx/" + "a_long_name_" * 10 + ".engine"


def printed(*, unbroken: str | None) -> list[str]:
    console = Console(file=StringIO(), width=80)
    print_table(console, ("target", "engine"), [("sm89", PATH), ("sm120", "b")], unbroken=unbroken)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_path_can_be_copied_from_a_table_that_is_wider_than_the_terminal() -> None:
    (line,) = [line for line in printed(unbroken="engine") if "sm89" in line and "out" in line]
    assert PATH in line
    assert max(map(len, printed(unbroken=None))) <= 80


def test_a_table_that_fits_is_no_wider_than_the_terminal() -> None:
    console = Console(file=StringIO(), width=80)
    print_table(console, ("engine",), [("b",)], unbroken="engine")
    assert isinstance(console.file, StringIO)
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


def test_a_name_in_a_table_moves_no_cursor() -> None:
    console = Console(file=StringIO(), width=80)
    print_table(console, ("node",), [("conv\x1b[2J\x07",), ("two\nlines",)])
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "conv\\x1b[2J\\x07" in text
    assert "\x1b" not in text
    assert [line.strip() for line in text.splitlines() if line.strip()][-2:] == ["two", "lines"]
