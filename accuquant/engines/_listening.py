"""What the compiler calls back: a logger that writes to a file, and a progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

Report = Callable[[dict[str, Any]], None]


def make_logger(trt: Any, file: IO[str]) -> Any:
    """Return a trt.ILogger that writes every message to `file`.

    `first_error` keeps the first error, `warnings` every warning.
    """

    class FileLogger(trt.ILogger):  # type: ignore[misc]  # the library's name is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.first_error: str | None = None
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            file.write(message + "\n")
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.first_error = self.first_error or " ".join(message.split())[:300]
                file.flush()
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return FileLogger()


def make_monitor(trt: Any, report: Report) -> Any:
    """Return a trt.IProgressMonitor that reports each new percent as `{"percent": 7}`."""
    phases = PhaseTree()
    reported = 0

    def report_new_percent() -> None:
        nonlocal reported
        percent = int(100 * phases.share)
        if percent > reported:
            reported = percent
            report({"percent": percent})

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library's name is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            phases.start(name, parent, num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            phases.complete(name, step + 1)
            report_new_percent()
            return True

        def phase_finish(self, name: str) -> None:
            phases.finish(name)
            report_new_percent()

    return Monitor()


class PhaseTree:
    """The share of the work that is done, where phases have steps and steps may be phases of their own.

    A phase's share is (finished steps + the share of the phase inside its current step) / steps.
    """

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int]] = {}
        self._child: dict[str, str] = {}
        self._root: str | None = None
        self._reached = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Begin a phase of `num_steps` steps inside the current step of `parent`."""
        self._steps[name] = (0, max(num_steps, 1))
        if parent in self._steps and parent is not None:
            self._child[parent] = name
        elif self._root is None:
            self._root = name

    def complete(self, name: str, done: int) -> None:
        """Say that `done` steps of the phase are finished."""
        if name in self._steps:
            self._steps[name] = (done, self._steps[name][1])
            self._child.pop(name, None)
            if self._root is not None:
                self._reached = max(self._reached, self._share_of(self._root))

    def finish(self, name: str) -> None:
        """End a phase; it stays full until its parent's step is over."""
        if name in self._steps:
            self.complete(name, self._steps[name][1])

    @property
    def share(self) -> float:
        """The share of the whole that is done, 0 to 1; it never falls."""
        return self._reached

    def _share_of(self, name: str) -> float:
        done, total = self._steps[name]
        child = self._child.get(name)
        inside = self._share_of(child) if child is not None and child != name else 0.0
        return min(1.0, (done + min(inside, 1.0)) / total)
