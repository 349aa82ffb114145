"""Let one process at a time into a piece of work, by a lock on a file."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from accuquant.errors import UsageError

#: What a file system without locks answers; there, processes are not kept apart, as without this module.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock on the file `path` during the block; wait for whoever holds it, after `on_wait()`.

    The file is there as long as it is held. The system drops the lock when a process dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = take(path)
    if file is None:
        if on_wait is not None:
            on_wait()
        file = take(path, wait=True)
    assert file is not None
    with _given_back(file, path):
        yield


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Let no other process write `output` during the block.

    Raises UsageError, which names the holder, where one does already.
    """
    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = take(path)
    if file is None:
        raise UsageError(
            f"output '{output}'",
            got=f"another run that writes it now ({_holder(path)})",
            expected="one run at a time",
            remedy="Wait until it is done, or give another output",
        )
    with _given_back(file, path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def take(path: Path, *, wait: bool = False) -> IO[bytes] | None:
    """Return the file at `path`, created and locked until it is closed; None where another holds it.

    A file that its holder removed meanwhile is not taken for the one that is there. Without locks in the
    file system, every caller gets it.
    """
    while True:
        file = open(path, "a+b")  # noqa: SIM115, the caller closes it
        try:
            taken = _acquire(file, wait=wait)
        except OSError as fault:
            if fault.errno not in _NO_LOCKS:
                file.close()
                raise
            return file
        if taken and _lies_at(file, path):
            return file
        file.close()
        if not taken:
            return None


def take_abandoned(path: Path) -> IO[bytes] | None:
    """Return the lock file of a dead process, locked; None where one holds it, or where that is unknown."""
    try:
        file = open(path, "a+b")  # noqa: SIM115, the caller closes it
    except OSError:
        return None
    try:
        taken = _acquire(file, wait=False)
    except OSError:
        taken = False
    if taken:
        return file
    file.close()
    return None


@contextmanager
def _given_back(file: IO[bytes], path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            _unlink(path)  # while it is locked: who waits for it looks whether it is still there
        except KeyboardInterrupt:  # it came in the middle of the cleaning, which is to end first
            _unlink(path)
            raise
        finally:
            file.close()


def _unlink(path: Path) -> None:
    with suppress(OSError):  # Windows removes no open file: there it stays
        path.unlink()


def _lies_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "it has only begun"
    except (OSError, UnicodeDecodeError):
        return "it does not say who it is"


if sys.platform == "win32":
    import msvcrt
    import time

    #: A byte that is never written, so that the file's text can be read while it is locked.
    _LOCKED_BYTE = 2**30

    def _acquire(file: IO[bytes], *, wait: bool) -> bool:
        while True:
            try:
                file.seek(_LOCKED_BYTE)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
                time.sleep(0.2)
            else:
                return True

else:
    import fcntl

    def _acquire(file: IO[bytes], *, wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
