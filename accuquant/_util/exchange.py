"""Put a folder where another one is, without a moment in which there is none."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: What a kernel, a file system or a sandbox without the call answers.
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def replace_folder(folder: Path, target: Path, old: Path) -> None:
    """Move `folder` to `target`; what was there ends at `folder` or at `old`, on the same disk.

    On Linux the two change places in one step, so that a kill finds the old folder or the new one. Elsewhere
    there is a moment between two renames. Where the new folder cannot take the place, the old one keeps it.
    """
    if not target.exists():
        folder.rename(target)
        return
    if _exchange(folder, target):
        return
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places; False where this system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(b))
