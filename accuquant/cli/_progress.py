"""Progress on stderr: a bar on a terminal, a line for each stage elsewhere, nothing with --quiet."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from accuquant.cli._session import current_session


class Bars:
    """An accuquant._util.progress.Progress for people: `with Bars() as progress: ...`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=current_session().quiet, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @property
    def seconds(self) -> float:
        """The seconds since this object was made."""
        return time.monotonic() - self._start

    def stage(self, name: str, total: int) -> None:
        """Replace the bar by an empty one named `name`."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total if total > 0 else None)
        if not self.console.is_terminal:
            self.message(f"{name} ...")

    def advance(self, units: int = 1) -> None:
        """Move the bar forward."""
        if self._task is not None:
            self._bars.advance(self._task, units)

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def share(self, what: str, done: float) -> None:
        """Say what happens now, and move a bar of 100 to the share `done` of the work, 0 to 1."""
        if self._task is not None:
            self._bars.update(self._task, completed=round(100 * done), description=what)

    def reached(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total`, for callers that count by themselves."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
