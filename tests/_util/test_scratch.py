"""Scratch folders: gone after the block, and after the next run where a process was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from accuquant._util.files import write_text
from accuquant._util.scratch import remove_abandoned, scratch_beside, scratch_folder

WORK = """
import sys
from pathlib import Path
from accuquant._util.scratch import scratch_beside
with scratch_beside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("working", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is in the middle of writing `target`."""
    command = [sys.executable, "-c", WORK, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"working"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Let this process look at folders as one that has just begun."""
    remove_abandoned.cache_clear()


def test_a_scratch_folder_is_hidden_and_gone_after_the_block(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "new" / "out") as folder:
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith(".out.")
        (folder / "deep").mkdir()
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_scratch_folder_is_gone_after_a_failure(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), scratch_beside(tmp_path / "out"):
        raise fault
    assert os.listdir(tmp_path) == []


def test_the_next_run_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    with another_process(tmp_path / "out") as process:
        process.kill()
        process.wait()
        assert len(os.listdir(tmp_path)) == 1
    write_text(tmp_path / "other.txt", "any file beside it")
    assert os.listdir(tmp_path) == ["other.txt"]


def test_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with another_process(tmp_path / "out"):
        (folder,) = tmp_path.iterdir()
        with scratch_beside(tmp_path / "out") as ours:
            assert sorted(tmp_path.iterdir()) == sorted([folder, ours])
        assert (folder / "half").read_text() == "half"


def test_what_others_called_alike_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (".out.abcdefgh", ".out.old", "out.abcdefgh.accuquant-tmp", ".out.accuquant-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.abcdefgh.accuquant-tmp").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_without_locks_keeps_everything_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".out.abcdefgh.accuquant-tmp").mkdir()
    monkeypatch.setattr("fcntl.flock", no_locks)
    write_text(tmp_path / "a.txt", "a")
    assert sorted(os.listdir(tmp_path)) == [".out.abcdefgh.accuquant-tmp", "a.txt"]


def test_what_was_made_and_never_locked_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.abcdefgh.accuquant-tmp").mkdir()
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == []


def test_temporary_work_is_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".accuquant-build.abcdefgh.accuquant-tmp").mkdir()
    with scratch_folder("build") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert os.listdir(tmp_path) == []


def test_an_interruption_of_the_cleaning_waits_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree
    interrupted: list[Path] = []

    def interrupt_once(folder: Path, **options: Any) -> None:
        if not interrupted:
            interrupted.append(folder)
            raise KeyboardInterrupt
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupt_once)
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "out"):
        pass
    assert interrupted
    assert os.listdir(tmp_path) == []


def test_an_interruption_of_the_making_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("accuquant._util.scratch.take", interrupt)
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []
