"""SIGTERM ends a command as Ctrl-C does: a line, an exit code, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accuquant.cli._signals import terminable

WORK = """
import signal, sys, time
from pathlib import Path
from accuquant._util.lock import only_writer
from accuquant._util.scratch import scratch_beside
from accuquant.cli._command import Command
from accuquant.cli.main import run

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it

def work():
    with only_writer(Path(sys.argv[1])), scratch_beside(Path(sys.argv[1])) as folder:
        (folder / "half").touch()
        print("working", flush=True)
        time.sleep(60)

sys.exit(run(Command("works", callback=work), "accuquant", []))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_cleans_up_says_so_and_gives_its_exit_code(
    tmp_path: Path, sent: signal.Signals, code: int, word: str
) -> None:
    command = [sys.executable, "-c", WORK, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        assert len(os.listdir(tmp_path)) == 2, "a lock and a folder"
        process.send_signal(sent)
        _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"accuquant: {word}, without leaving half a file. Run it again" in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []


#: Is terminated, and once more while cleaning.
TWICE = """
import os, signal
from accuquant.cli._signals import Terminated, terminable

try:
    with terminable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            print("cleaned", flush=True)
except Terminated:
    print("terminated", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


def test_a_second_signal_does_not_cut_the_cleaning_short() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["cleaned", "terminated", "True"]), done.stderr


def test_a_handler_of_somebody_else_stays() -> None:
    def theirs(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
