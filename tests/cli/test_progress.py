from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from accuquant.cli._progress import Bars


def test_prints_stages_and_messages_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream)) as progress:
        progress.stage("step group 1/2", 10)
        progress.advance()
        progress.message("loss 2 -> 1 [bold]")
    assert stream.getvalue() == "step group 1/2 ...\nloss 2 -> 1 [bold]\n"


def test_a_terminal_shows_the_bar_and_keeps_the_messages() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with Bars(console) as progress:
        progress.stage("trajectories", 4)
        progress.advance(3)
        progress._bars.refresh()
        progress.reached(4, 4)
        progress.message("done")
    output = stream.getvalue()
    assert "trajectories" in output
    assert "3/4" in output
    assert "done" in output


def test_quiet_prints_nothing() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, quiet=True)) as progress:
        progress.stage("trajectories", 4)
        progress.message("done")
    assert stream.getvalue() == ""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Waited(io.StringIO):
    """Keeps what is written, and says when that was more than the line that announces a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.more = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.getvalue().count("\n") > 1:
            self.more.set()
        return count


def test_a_long_unit_says_so_in_a_line_where_there_is_no_terminal() -> None:
    stream, clock = Waited(), Clock()
    with Bars(Console(file=stream), clock=clock, look_every=0.001) as progress:
        progress.stage("weight rounding", 8)
        progress.advance(2)
        clock.now = 31
        assert stream.more.wait(10)
    assert stream.getvalue() == "weight rounding ...\nweight rounding: 25% after 31 s\n"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize("options", [{"quiet": True}, {"force_terminal": True}])
def test_nobody_watches_the_clock_for_a_terminal_or_in_silence(options: dict[str, bool]) -> None:
    with Bars(Console(file=io.StringIO(), **options)):  # type: ignore[arg-type]
        assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_the_line_follows_shares_and_counts_of_callers() -> None:
    clock = Clock()
    progress = Bars(Console(file=io.StringIO()), clock=clock)
    progress.stage("export", 100)
    clock.now = 40
    progress.share("compiling", 0.5)
    assert progress._line.due() == "compiling: 50% after 40 s, about 40 s left"
    progress.stage("images", 1)
    clock.now = 80
    progress.reached(3, 4)
    assert progress._line.due() == "images: 75% after 40 s, about 13 s left"
