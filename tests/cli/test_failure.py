from __future__ import annotations

import errno
import os

import click
import pytest

from accuquant.cli._command import Command
from accuquant.cli.main import run as run_command
from accuquant.errors import EngineError, UsageError


def failing(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return Command("fails", callback=fail)


class SafetensorError(Exception):
    """Like the one of safetensors, which is no OSError."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--x", got="1", expected="2", remedy="Give 2"), 2, "--x: got 1, expected 2. Give 2."),
        (EngineError("a", got="b", expected="c", remedy="d"), 1, "a: got b, expected c. d."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.onnx"), 1, "Free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, "Free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            1,
            "Permission denied: /a. Check the perm",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "pip install 'accuquant[calibrate]'",
        ),
        (MemoryError(), 1, "out of memory"),
        (
            KeyboardInterrupt(),
            130,
            "a calibration goes on where it was",
        ),
        (ZeroDivisionError("division\nby zero"), 1, "internal error: ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(failing(error), "accuquant", []) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("accuquant: ")
    assert message in lines[0]


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    error = ZeroDivisionError("division by zero")
    assert run_command(failing(error), "accuquant", ["--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
