"""The one way from a path that a file names (a manifest, a configuration, a graph) to a file on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from accuquant.errors import AccuQuantError, EngineError

#: Characters of a name that an error repeats.
_SHOWN = 120
_REMEDY = "Do not use these files unless you trust them; if they are yours, write them again"


def named_file(
    folder: str | os.PathLike[str],
    name: str,
    *,
    subject: str,
    error: type[AccuQuantError] = EngineError,
    remedy: str = _REMEDY,
) -> Path:
    """Return the path of the file that `name`, written in some file, means in `folder`.

    Raises `error` about `subject` where the name leads out of the folder, or to something else than a
    regular file: what is read from a file is data, and must not make anybody read /etc/passwd, or wait for a
    device. A file that is not there is no fault here: the path says where it should be.

    Links may stay inside the folder. In a snapshot of the Hugging Face cache they may also lead to the blobs
    of the same repository, which is how that cache keeps files.
    """
    fault = path_fault(folder, name)
    if fault:
        raise error(
            subject,
            got=f"{shown(name)}, {fault}",
            expected=f"the name of a file inside '{folder}'",
            remedy=remedy,
        )
    return Path(folder) / name


def path_fault(folder: str | os.PathLike[str], name: str) -> str:
    """Return what is wrong with `name` as the name of a file in `folder`, or "". See `named_file`."""
    return name_fault(name) or _link_fault(Path(folder), name)


def name_fault(name: str) -> str:
    """Return what is wrong with a relative path as text, without a look at the disk, or ""."""
    windows = PureWindowsPath(name)
    if not name or name in (".", "./"):
        return "an empty path"
    if "\0" in name:
        return "a path with a null byte"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "a path with control characters"
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root:
        return "an absolute path, which points outside the folder"
    depth = 0
    for part in windows.parts:  # splits at both kinds of slash
        depth += -1 if part == ".." else 1
        if depth < 0:
            return "which points outside the folder"
    return ""


def snapshot_of(folder: str | os.PathLike[str]) -> Path | None:
    """Return the snapshot of the Hugging Face cache that `folder` lies in, or None.

    The layout is .../models--user--name/snapshots/<commit>/ with the files' bytes in .../models--user--name/
    blobs/ (huggingface_hub, "Understand caching").
    """
    here = Path(folder).resolve()
    for path in (here, *here.parents):
        repository = path.parent.parent
        is_one = path.parent.name == "snapshots" and repository.name.startswith("models--")
        if is_one and (repository / "blobs").is_dir():
            return path
    return None


def is_downloaded(folder: str | os.PathLike[str]) -> bool:
    """Return whether the Hub's client fetched `folder`: into its cache, or with `--local-dir`."""
    here = Path(folder).resolve()
    # not .cache/huggingface alone: that is what every home folder has
    local = any((path / ".cache/huggingface/download").is_dir() for path in (here, here.parent))
    return local or snapshot_of(folder) is not None


def _link_fault(folder: Path, name: str) -> str:
    try:
        root = folder.resolve()
        target = (folder / name).resolve()
        allowed = [root]
        snapshot = snapshot_of(folder)
        if snapshot is not None:
            allowed.append(snapshot.parent.parent / "blobs")  # where blobs is itself a link, it leads out
        if not any(target.is_relative_to(place) for place in allowed):
            return "which points outside the folder"
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, RuntimeError, ValueError) as fault:  # loops of links, names that are too long or no text
        return f"which cannot be read ({getattr(fault, 'strerror', None) or fault})"
    return "" if stat.S_ISREG(mode) else "which is no regular file"


def shown(name: str) -> str:
    """Return a name that a file gave as an error repeats it: quoted, and not at any length."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
