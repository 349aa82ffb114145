"""Atomic writes: the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from accuquant._util.files import (
    atomic_write,
    check_new_file,
    check_new_folder,
    check_new_path,
    sha256_of_file,
    write_text,
)
from accuquant.errors import UsageError


def test_the_target_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.bin"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.stat().st_dev == target.parent.stat().st_dev
        assert temporary.suffix == ".bin"
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["a.bin"]


def write_half(target: Path, fault: type[BaseException]) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text("half")
        raise fault


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, fault: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(fault):
        write_half(target, fault)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_inside_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        write_half(tmp_path / "a.txt", ValueError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_new_file_has_the_permissions_that_open_would_give(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    (tmp_path / "b.txt").write_text("b")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "b.txt")]
    assert modes[0] == modes[1]


def test_write_text_writes_utf8_and_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(str(tmp_path / "a.txt"), "zw\u00f6lf \u2192 12\n")
    assert (tmp_path / "a.txt").read_bytes() == "zw\u00f6lf \u2192 12\n".encode()


def test_sha256_reads_files_larger_than_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of_file(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_of_file(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_names_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def denied(*paths: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", *map(str, paths[: function == "replace"]))

    monkeypatch.setattr(os, function, denied)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*a\.txt'") as fault:
        write_text(tmp_path / "a.txt", "new")
    assert fault.value.filename == str(tmp_path / "a.txt")


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as fault, atomic_write(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_text()
    assert str(fault.value.filename) == str(tmp_path / "other.txt")


def test_a_folder_is_named_before_a_result_is_to_be_written_there(tmp_path: Path) -> None:
    check_new_file("--html", tmp_path / "new" / "page.html")
    (tmp_path / "page.html").touch()
    check_new_file("--html", tmp_path / "page.html")
    with pytest.raises(UsageError, match=r"--html: got '.*', a folder, expected the path of a file"):
        check_new_file("--html", tmp_path)
    with pytest.raises(UsageError, match=r"--html: got '.*page.html/x/y', inside of a file"):
        check_new_file("--html", tmp_path / "page.html" / "x" / "y")


def test_only_the_folder_that_is_written_into_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose root belongs to another user than the folder that is mounted into it."""
    mounted = tmp_path / "images"
    mounted.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) == mounted)
    check_new_folder("--output-dir", mounted)
    check_new_folder("--output-dir", mounted / "new" / "deeper")
    check_new_file("--json", mounted / "report.json")
    for check in (check_new_path, check_new_folder):
        with pytest.raises(UsageError, match=f"nothing can be written into '{tmp_path}'"):
            check("--output", tmp_path / "other")
    with pytest.raises(UsageError, match=f"nothing can be written into '{tmp_path}'"):
        check_new_path("--output", mounted)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--output-dir: got '.*', a file, expected the path of a folder"):
        check_new_folder("--output-dir", tmp_path / "file")
