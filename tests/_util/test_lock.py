"""Tests of the lock between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from accuquant._util.lock import exclusive, only_writer
from accuquant.errors import UsageError

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
        with exclusive(tmp_path / "folder" / "lock", lambda: pytest.fail("waited")):
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


def test_a_lock_leaves_no_file(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removed_is_not_held_by_two(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        for _ in range(200):
            with exclusive(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_of_an_output_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    output = tmp_path / "recipe.safetensors"
    with (
        only_writer(output),
        pytest.raises(UsageError, match=rf"recipe.safetensors.*process {os.getpid()} on .*one run at a time"),
        only_writer(output),
    ):
        pass
    with only_writer(output), only_writer(tmp_path / "other.safetensors"):
        pass
    assert list(tmp_path.iterdir()) == []
