"""Folders for what is not finished, and an end to those that a killed process left."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from accuquant._util.lock import take, take_abandoned

_SUFFIX = ".accuquant-tmp"
_NAME = re.compile(r"\..+\.[a-z0-9_]{8}" + re.escape(_SUFFIX))
#: Held by the process that works in the folder; the system lets go of it when the process dies.
_LOCK = "lock"
#: Of a target's name, what the folder's says: file systems bound a name's length.
_SHOWN = 60


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, on its disk, that is gone after the block.

    Where the process is killed, the next one that writes into the same place removes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(target.parent, target.name) as folder:
        yield folder


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield a new folder in the system's place for temporary files, as scratch_beside does."""
    with _scratch(Path(tempfile.gettempdir()), f"accuquant-{purpose}") as folder:
        yield folder


def sweep_beside(target: Path) -> None:
    """Remove what killed processes left beside `target` and in the system's place for temporary files.

    For a run that finds its result there already, and so makes no scratch folder itself.
    """
    for parent in (target.parent, Path(tempfile.gettempdir())):
        remove_abandoned(parent)


def is_scratch(path: Path) -> bool:
    """Say whether `path` is such a folder, or lies in one."""
    return any(_NAME.fullmatch(part) for part in path.parts)


@contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    remove_abandoned(parent.absolute())
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        lock.close()  # Windows removes no open file
        _remove(folder)


def _make(parent: Path, name: str) -> tuple[Path, IO[bytes]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name[:_SHOWN]}.", suffix=_SUFFIX, dir=parent))
        try:
            lock = take(folder / _LOCK)
        except FileNotFoundError:
            continue  # another process took it for abandoned before it was locked
        except BaseException:
            _remove(folder)
            raise
        if lock is not None:
            return folder, lock


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:  # it came in the middle of the cleaning, which is to end first
        shutil.rmtree(folder, ignore_errors=True)
        raise


@cache  # once a process: what is left after that is its own
def remove_abandoned(parent: Path) -> None:
    """Remove from `parent` the scratch folders whose processes are dead.

    Those of a living process are locked, on this machine or, over NFS, on another. Where the file system has
    no locks nothing is removed, and neither is what another user or another program made.
    """
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if _is_ours(entry)]
    for folder in found:
        lock = take_abandoned(folder / _LOCK)
        if lock is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)  # while it is locked: a folder may just be being made
        lock.close()
        if os.name == "nt":  # which removes no open file
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if not _NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
        return False
    return not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
