"""The exceptions that AccuQuant raises on purpose.

AccuQuantError              exit code 1
 +-- UsageError             exit code 2: an argument or an option is wrong
 +-- MissingDependencyError a package that this command needs is not installed
 +-- SourceError            a pipeline folder, Hub id or .onnx cannot be read or is not supported
 +-- RecipeError            a recipe file is corrupt, too new, or belongs to another model
 +-- CalibrationError       calibration cannot start, resume or finish
 +-- ExportError            a graph cannot be lowered to QDQ form
 +-- EngineError            an exported model cannot be loaded, built or run
 +-- VerificationError      outputs cannot be compared
 +-- ClusterError           a cluster cannot be used, or a unit of work failed on it again and again
"""

from __future__ import annotations

from collections.abc import Iterable


class AccuQuantError(Exception):
    """A failure that the user can act on: `subject: got ..., expected .... remedy`.

    `subject` names the thing that is wrong (a file, a layer, an option), `got` what was found,
    `expected` what would have been right, `remedy` the next thing to do. All four may quote files that
    somebody else wrote: control characters are escaped and long values are cut, here and nowhere else.
    """

    exit_code = 1

    def __init__(self, subject: str, *, got: str, expected: str, remedy: str) -> None:
        self.subject = printable(subject)
        self.got = printable(got)
        self.expected = printable(expected)
        self.remedy = printable(remedy)
        super().__init__(
            f"{self.subject}: got {self.got}, expected {self.expected}. {self.remedy.rstrip('.')}."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.subject, self.got, self.expected, self.remedy)


def printable(text: object, limit: int = 2000) -> str:
    """Return `text` for a terminal: what is not printable escaped, the middle of a long one left out.

    A name from a file can hold terminal escapes, line breaks and characters that turn the direction of
    writing; shown as they are, they would let the file write the message.
    """
    shown = str(text)
    if len(shown) > limit:
        half = limit // 2 - 20
        shown = f"{shown[:half]} ...{len(shown) - 2 * half} more... {shown[-half:]}"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def _rebuild(
    kind: type[AccuQuantError], subject: str, got: str, expected: str, remedy: str
) -> AccuQuantError:
    return kind(subject, got=got, expected=expected, remedy=remedy)


class UsageError(AccuQuantError):
    """An argument or an option is wrong."""

    exit_code = 2


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """Return the error for an option `--kind` that got a name which is not in `valid`."""
    return UsageError(
        f"{kind} '{name}'",
        got="an unknown name",
        expected=" or ".join(valid),
        remedy=f"Give --{kind} one of these names",
    )


class MissingDependencyError(AccuQuantError):
    """A package that this command needs is not installed."""


class SourceError(AccuQuantError):
    """A pipeline folder, a Hub id or an .onnx file cannot be read or is not supported."""


class RecipeError(AccuQuantError):
    """A recipe file is corrupt, too new, or belongs to another model."""


class CalibrationError(AccuQuantError):
    """Calibration cannot start, resume or finish."""


class ExportError(AccuQuantError):
    """A graph cannot be lowered to QDQ form."""


class EngineError(AccuQuantError):
    """An exported model cannot be loaded, built or run."""


class VerificationError(AccuQuantError):
    """Outputs cannot be compared."""


class ClusterError(AccuQuantError):
    """A cluster or a worker of it cannot be used, or a unit of work failed there again and again."""


def last_line(fault: Exception) -> str:
    """Return the line that says what happened: engines print the C++ call stack above it."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return (lines[-1] if lines else type(fault).__name__)[:200]


class FloatLayersWarning(UserWarning):
    """Layers that were calibrated for int8 run in float on this processor, which is slower."""
