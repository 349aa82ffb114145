"""Write files so that a crash or a full disk leaves the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accuquant._util.scratch import is_scratch, scratch_beside
from accuquant.errors import UsageError


def check_new_file(subject: str, path: str | os.PathLike[str]) -> None:
    """Raise UsageError where no file can be written to `path`, before the work whose result goes there."""
    if Path(path).is_dir():
        raise _unwritable(subject, f"'{path}', a folder", "the path of a file")
    check_new_path(subject, path)


def check_new_folder(subject: str, path: str | os.PathLike[str]) -> None:
    """Raise UsageError where no files can be written into the folder `path`, as check_new_file does."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise _unwritable(subject, f"'{path}', a file", "the path of a folder")
    _check_around(subject, path, [folder.absolute(), *folder.absolute().parents])


def check_new_path(subject: str, path: str | os.PathLike[str]) -> None:
    """Raise UsageError where neither a file nor a folder can be made at `path`.

    Both are made beside their place and then renamed: it is the folder around it that counts.
    """
    _check_around(subject, path, Path(path).absolute().parents)


def _check_around(subject: str, path: str | os.PathLike[str], folders: Iterable[Path]) -> None:
    """Check the first of `folders` that is there: the others will be made in it."""
    parent = next((folder for folder in folders if folder.exists()), None)
    if parent is not None and not parent.is_dir():
        raise _unwritable(subject, f"'{path}', inside of a file", "a path in a folder")
    if parent is not None and not os.access(parent, os.W_OK | os.X_OK):
        raise _unwritable(subject, f"'{path}', and nothing can be written into '{parent}'", "another one")


def _unwritable(subject: str, got: str, expected: str) -> UsageError:
    return UsageError(subject, got=got, expected=expected, remedy="Choose another path")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path on the disk of `path`; rename it onto `path` if the block succeeds.

    The parent folder is created. The temporary file has the name of `path` and is removed when the block
    raises, or by the next process that writes beside it where this one is killed. An OSError names `path`.
    """
    target = Path(path)
    with errors_name(target), scratch_beside(target) as folder:
        temporary = folder / target.name
        temporary.touch()
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def errors_name(target: Path) -> Iterator[None]:
    """Give an OSError the name of `target` where it has none, or that of a temporary file."""
    try:
        yield
    except OSError as fault:
        named = fault.filename
        hidden = isinstance(named, str | os.PathLike) and is_scratch(Path(named))
        if fault.errno is None or not (named is None or hidden):
            raise
        raise OSError(fault.errno, fault.strerror, str(target)) from fault


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
