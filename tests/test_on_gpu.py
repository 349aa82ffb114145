"""benchmarks/on_gpu.sh with a Python that is pretended: which parts run, and when the script fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.sh"
#: Says what it was called with; fails where `FAILS` is one of the words.
STUB = """#!/bin/sh
echo "$@" >> "$CALLED"
case " $* " in *" $FAILS "*) echo "it went wrong"; exit 3;; esac
echo fine
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="a script for bash on Linux"
)


def run(folder: Path, fails: str = "nothing") -> tuple[int, str, list[str]]:
    """Run the script -> its exit code, what it printed, the command lines of Python."""
    stub, called = folder / "python", folder / "called"
    stub.write_text(STUB)
    stub.chmod(0o755)
    changes = {"PYTHON": str(stub), "OUT": str(folder / "out"), "CALLED": str(called), "FAILS": fails}
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, called.read_text().splitlines()


def test_every_part_runs_on_the_gpu(tmp_path: Path) -> None:
    code, said, called = run(tmp_path)
    assert code == 0
    assert called[1].endswith("cuda")  # the program that chooses the device has two lines
    parts = called[2:]
    assert len(parts) == 5
    assert parts[0].startswith("-m pytest -m gpu")
    assert "device_iteration.py --device cuda --model sd15 --size 64" in parts[1]
    assert all("--device cuda" in part for part in parts[1:])
    assert said.count("passed") == 2 * 5  # as it goes on, and in the summary


def test_the_parts_end_within_eight_minutes() -> None:
    words = [line.split() for line in SCRIPT.read_text().splitlines() if line.startswith("part ")]
    assert len(words) == 5
    assert sum(int(word[2]) for word in words) <= 8 * 60


def test_a_part_that_fails_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    code, said, called = run(tmp_path, fails="-m pytest")
    assert code == 1
    assert len(called) == 7
    assert "tests: FAILED (3)" in said
    assert "it went wrong" in (tmp_path / "out" / "tests.txt").read_text()


def test_nothing_runs_without_a_gpu_that_works(tmp_path: Path) -> None:
    code, said, called = run(tmp_path, fails="cuda")
    assert code == 1
    assert "No GPU that works" in said
    assert "it went wrong" in said
    assert len(called) == 2
