"""Tests of the lock between processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from accuquant._util.lock import exclusive

HOLD = """
import sys
from pathlib import Path
from accuquant._util.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_free_lock_is_taken_at_once_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "folder" / "lock", lambda: 1 / 0):
            pass


def test_a_second_process_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    path, waited = tmp_path / "lock", threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"

        def let_go() -> None:
            waited.set()
            holder.kill()

        with exclusive(path, let_go):
            assert holder.wait() != 0
    assert waited.is_set()
