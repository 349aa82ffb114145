"""Progress on stderr: a bar on a terminal, a line for each stage elsewhere, nothing with --quiet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from accuquant.cli._session import current_session
from accuquant.cli._stage_line import StageLine


class Bars:
    """An accuquant._util.progress.Progress for people: `with Bars() as progress: ...`.

    Where output is no terminal, a stage that takes long says every 30 seconds how far it is, also while one
    unit of it takes longer than that.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_every: float = 1.0,
    ) -> None:
        """Print on `console`, stderr by default; every `look_every` seconds `clock` decides about a line."""
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
        self._clock, self._start = clock, clock()
        self._line = StageLine(clock)
        self._look_every, self._over = look_every, threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Bars:
        self._bars.start()
        if not (self.console.is_terminal or self.console.quiet):
            self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
        self._bars.stop()

    def _watch(self) -> None:
        while not self._over.wait(self._look_every):
            line = self._line.due()
            if line is not None:
                self.message(line)

    @property
    def seconds(self) -> float:
        """The seconds since this object was made."""
        return self._clock() - self._start

    def stage(self, name: str, total: int) -> None:
        """Replace the bar by an empty one named `name`."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total if total > 0 else None)
        self._line.begin(name, total)
        if not self.console.is_terminal:
            self.message(f"{name} ...")

    def advance(self, units: int = 1) -> None:
        """Move the bar forward."""
        if self._task is not None:
            self._bars.advance(self._task, units)
            self._line.advance(units)

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def share(self, what: str, done: float) -> None:
        """Say what happens now, and move a bar of 100 to the share `done` of the work, 0 to 1."""
        if self._task is not None:
            self._bars.update(self._task, completed=round(100 * done), description=what)
            self._line.reach(round(100 * done), 100, what)

    def reached(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total`, for callers that count by themselves."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
            self._line.reach(done, total)
