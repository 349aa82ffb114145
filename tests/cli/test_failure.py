from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

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
        (ModuleNotFoundError("No module named 'ray'", name="ray"), 1, "pip install 'accuquant[cluster]'"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a.onnx"), 1, "ulimit -f"),
        (SafetensorError("I/O error: File too large (os error 27)"), 1, "ulimit -f"),
        (OSError(errno.ENOENT, "No such file or directory", "a\x1b[2J"), 1, "a\\x1b[2J"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), 1, "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of m",
        ),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "on the GPU. Give --device cpu"),
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


@pytest.mark.parametrize("limit", ["ulimit -f 8", "ulimit -v 600000"])
def test_a_small_limit_of_the_shell_is_no_internal_error(limit: str, tmp_path: Path) -> None:
    """A recipe that is written, or arrays that are made, where the shell allows little."""
    code = (
        "import numpy as np\n"
        "from accuquant.cli._command import Command\n"
        "from accuquant.cli.main import run\n"
        "from accuquant._util.files import atomic_write\n"
        "def fill():\n"
        "    with atomic_write('big.bin') as path:\n"
        "        path.write_bytes(np.zeros(1 << 30, np.uint8)[: 1 << 20].tobytes())\n"
        "raise SystemExit(run(Command('fill', callback=fill), 'accuquant', []))\n"
    )
    done = subprocess.run(
        ["bash", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, code],
        cwd=tmp_path,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "internal error" not in done.stderr
    assert "ulimit -f" in done.stderr or "out of memory" in done.stderr
    assert list(tmp_path.iterdir()) == []
