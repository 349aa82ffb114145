from __future__ import annotations

import io

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
